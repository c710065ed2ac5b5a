"""The context managers that a trainer holds around its own lanes, phases, copies and waits.

Plain classes with slots: half the cost of generators, and they run on the training thread.
"""

from __future__ import annotations

from collections.abc import Callable

from dpwatch.probe.cpu import Clocks
from dpwatch.probe.lanes import Lane, here
from dpwatch.probe.seams import LedgerLike
from dpwatch.probe.steps import Steps

Fail = Callable[[BaseException], None]


class LaneJob:
    """This thread works for a lane meanwhile; a lane that is taken already is left alone."""

    __slots__ = ("_clocks", "_fail", "_in_ledger", "_lane", "_ledger", "_main", "_outer", "_took")

    def __init__(
        self, lane: Lane, main: Lane, clocks: Clocks, ledger: LedgerLike, fail: Fail
    ) -> None:
        self._lane = lane
        self._main = main
        self._clocks = clocks
        self._ledger = ledger
        self._fail = fail
        self._took = self._in_ledger = False
        self._outer: Lane | None = None

    def __enter__(self) -> None:
        lane = self._lane
        if lane.over or lane.taken:
            return
        try:
            self._take(lane)
            self._ledger.enter_lane(lane.device)
            self._in_ledger = True
        except Exception as error:  # noqa: BLE001 - never into the user's code
            self._fail(error)

    def _take(self, lane: Lane) -> None:
        lane.taken = self._took = True
        self._outer = here.lane
        if self._outer is not None:
            self._outer.suspend()
        here.lane = lane
        if here.clock is None:
            here.clock = self._clocks.of_this_thread()
        lane.adopt(here.clock, measuring=self._main.measuring)

    def __exit__(self, *_: object) -> None:
        try:
            if self._in_ledger:
                self._ledger.exit_lane()
            if self._took:
                self._give_back()
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _give_back(self) -> None:
        lane = self._lane
        lane.leave()
        lane.taken = False
        here.lane = self._outer
        if self._outer is not None:
            self._outer.resume()


class PhaseSpan:
    """The lane is in a phase meanwhile."""

    __slots__ = ("_entered", "_fail", "_lane", "_phase", "_steps")

    def __init__(self, steps: Steps, lane: Lane, phase: int, fail: Fail) -> None:
        self._steps = steps
        self._lane = lane
        self._phase = phase
        self._fail = fail
        self._entered = False

    def __enter__(self) -> None:
        try:
            self._steps.phase_begins(self._lane, self._phase)
            self._entered = True
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def __exit__(self, *_: object) -> None:
        try:
            if self._entered:
                self._lane.exit()
        except Exception as error:  # noqa: BLE001
            self._fail(error)


class TransferSpan:
    """One copy between devices, timed."""

    __slots__ = ("_copy", "_lane", "_start")

    def __init__(self, lane: Lane, kind: str, src: int, dst: int, nbytes: int) -> None:
        self._lane = lane
        self._copy = (kind, src, dst, nbytes)
        self._start = 0

    def __enter__(self) -> None:
        self._start = self._lane.wall()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # a copy that raised moved nothing that can be counted
            self._lane.moved(*self._copy, self._lane.wall() - self._start)


class WaitSpan:
    """The thread waits for another of the trainer's meanwhile."""

    __slots__ = ("_lane",)

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def __enter__(self) -> None:
        self._lane.wait_begins()

    def __exit__(self, *_: object) -> None:
        self._lane.wait_ends()
