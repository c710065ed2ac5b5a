"""Context managers for a trainer's own lanes, phases, copies and waits.

Plain classes with slots cost half as much as generators, and these run on the training thread.
"""

from __future__ import annotations

from collections.abc import Callable

from dpwatch.probe.foreign import own_fault
from dpwatch.probe.instruments import LedgerLike
from dpwatch.probe.steps.lanes import KEPT, Lane, here
from dpwatch.probe.steps.thread_clock import Clocks

Fail = Callable[[BaseException], None]


class LaneJob:
    """While entered, this thread works for a lane, unless another thread already does."""

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
            self._adopt_lane(lane)
            self._ledger.enter_lane(lane.device)
            self._in_ledger = True
        except Exception as error:  # noqa: BLE001 - never into the user's code
            own_fault(error, self._fail)

    def _adopt_lane(self, lane: Lane) -> None:
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
                self._release_lane()
        except Exception as error:  # noqa: BLE001
            own_fault(error, self._fail)

    def _release_lane(self) -> None:
        lane = self._lane
        lane.release()
        lane.taken = False
        here.lane = self._outer
        if self._outer is not None:
            self._outer.resume()


class PhaseSpan:
    """While entered, the lane is in a phase."""

    __slots__ = ("_before", "_fail", "_lane", "_phase", "_was_named")

    def __init__(self, lane: Lane, phase: int, fail: Fail) -> None:
        self._lane = lane
        self._phase = phase
        self._fail = fail
        self._before = KEPT
        self._was_named = False

    def __enter__(self) -> None:
        lane = self._lane
        try:
            self._was_named, lane.named = lane.named, True
            self._before = lane.steps.phase_begins(lane, self._phase)
        except Exception as error:  # noqa: BLE001
            own_fault(error, self._fail)

    def __exit__(self, *_: object) -> None:
        lane = self._lane
        lane.named = self._was_named
        try:
            if self._before != KEPT:
                lane.leave(self._before)
        except Exception as error:  # noqa: BLE001
            own_fault(error, self._fail)


class TransferSpan:
    """Times one copy between devices."""

    __slots__ = ("_copy", "_lane", "_start")

    def __init__(self, lane: Lane, kind: str, src: int, dst: int, nbytes: int) -> None:
        self._lane = lane
        self._copy = (kind, src, dst, nbytes)
        self._start = 0

    def __enter__(self) -> None:
        self._start = self._lane.wall()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # how much a copy moved that raised is unknown
            self._lane.moved(*self._copy, self._lane.wall() - self._start)


class WaitSpan:
    """While entered, the thread waits for another thread of the trainer."""

    __slots__ = ("_lane",)

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def __enter__(self) -> None:
        self._lane.wait_begins()

    def __exit__(self, *_: object) -> None:
        self._lane.wait_ends()
