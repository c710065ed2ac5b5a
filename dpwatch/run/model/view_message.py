"""A run's view as a hub sends it: whole at first, then what has changed since the view before.

The run's figures are always there. Of the last steps, the printed lines and the curves a message
has what is new, of the stacks nothing unless they have changed.
"""

from __future__ import annotations

import msgspec

from dpwatch.run.model.snapshot import (
    LANE_STEPS,
    Curve,
    History,
    LaneSteps,
    Printed,
    RankOutput,
    Run,
    RunView,
)
from dpwatch.run.model.stacks import RankStacks
from dpwatch.wire.arrays import Floats, Ints, unpacked
from dpwatch.wire.messages import Step


class CurveTail(msgspec.Struct, array_like=True):
    """A curve: the first `kept` points of what it was before, then these."""

    kept: int
    steps: Ints
    values: Floats


class CurveTails(msgspec.Struct, array_like=True):
    """The run's curves, and one for each of its rows."""

    loss: CurveTail
    step_ms: CurveTail
    rank_step_ms: list[CurveTail]
    rank_peak_bytes: list[CurveTail]


class LaneTail(msgspec.Struct, array_like=True):
    """The last steps of a row.

    Attributes:
        count: How many have come, whether kept or not.
        steps: The latest of them: all of the last `LANE_STEPS`, or those that are new.
    """

    rank: int
    device: str
    host: str
    count: int
    steps: tuple[Step, ...]


class OutputTail(msgspec.Struct, array_like=True):
    """What a rank has printed.

    Attributes:
        lines: Those that are new, …
        open: … and those that it is still writing.
        left_out: As in `RankOutput`, …
        let_go: … likewise.
    """

    rank: int
    lines: tuple[Printed, ...]
    open: tuple[Printed, ...]
    left_out: int
    let_go: int


class ViewMessage(msgspec.Struct, array_like=True):
    """A view of a run.

    Attributes:
        number: Which one it is.
        since: The view that its changes are to; 0 if it is whole.
        is_over: Nothing more can come: a run of one process, whose exit is known.
        stacks: None if they are as before, …
        earlier: … runs that the hub has served before this one likewise, …
        curves: … and the curves.
        output: Of the ranks that have printed something new.
    """

    number: int
    since: int
    run: Run
    elapsed_s: float | None
    tells_output: int
    is_over: bool
    lanes: list[LaneTail]
    output: list[OutputTail]
    stacks: tuple[RankStacks, ...] | None
    earlier: list[Run] | None
    curves: CurveTails | None


_decoder = msgspec.msgpack.Decoder(ViewMessage, dec_hook=unpacked)


class ViewReader:
    """Brings a run's views together from what its hub sends.

    Attributes:
        number: The view that has been read last, 0 before the first.
        view: The run as it shows, None before the first.
        is_over: Nothing more can come.
        earlier: Runs that the hub has served before, the oldest first.
    """

    def __init__(self) -> None:
        self.number = 0
        self.view: RunView | None = None
        self.is_over = False
        self.earlier: list[Run] = []
        self._lanes: dict[tuple[int, str], tuple[int, LaneSteps]] = {}
        self._lines: dict[int, tuple[Printed, ...]] = {}
        self._output: dict[int, RankOutput] = {}

    def read(self, data: bytes | memoryview) -> None:
        """Takes a message in; one whose changes are not to the view read last says nothing.

        Raises:
            msgspec.MsgspecError, RecursionError, UnicodeDecodeError: It is none.
        """
        message = _decoder.decode(data)
        if message.since not in (0, self.number):
            return  # an answer to a question that has been asked again since
        before = self.view if message.since else None
        if before is None:
            self._lanes, self._lines, self._output = {}, {}, {}
        self.view = RunView(
            run=message.run,
            history=self._history(before, message.curves),
            elapsed_s=message.elapsed_s,
            lanes=self._last_steps(message.lanes),
            stacks=self._stacks(before, message.stacks),
            output=self._printed(message.output),
            tells_output=message.tells_output,
        )
        self.earlier = self.earlier if message.earlier is None else message.earlier
        self.number, self.is_over = message.number, message.is_over

    def _last_steps(self, tails: list[LaneTail]) -> tuple[LaneSteps, ...]:
        lanes = {}
        for tail in tails:
            key = tail.rank, tail.device
            count, lane = self._lanes.get(key, (0, None))
            if lane is None or tail.steps or lane.host != tail.host:
                goes_on = lane is not None and tail.count == count + len(tail.steps)
                steps = (*(lane.steps if lane and goes_on else ()), *tail.steps)[-LANE_STEPS:]
                lane = LaneSteps(tail.rank, tail.device, tail.host, steps)
            lanes[key] = tail.count, lane
        self._lanes = lanes
        return tuple(lane for _, lane in lanes.values())

    def _printed(self, tails: list[OutputTail]) -> tuple[RankOutput, ...]:
        for tail in tails:
            before = self._output.get(tail.rank)
            gone = tail.let_go - (before.let_go if before else tail.let_go)
            lines = (*self._lines.get(tail.rank, ())[max(0, gone) :], *tail.lines)
            self._lines[tail.rank] = lines
            shown = (*lines, *tail.open)
            self._output[tail.rank] = RankOutput(tail.rank, shown, tail.left_out, tail.let_go)
        if tails:
            self._output = dict(sorted(self._output.items()))
        return tuple(self._output.values())

    @staticmethod
    def _stacks(
        before: RunView | None, stacks: tuple[RankStacks, ...] | None
    ) -> tuple[RankStacks, ...]:
        if stacks is not None:
            return stacks
        return before.stacks if before else ()

    def _history(self, before: RunView | None, tails: CurveTails | None) -> History:
        known = before.history if before else History()
        if tails is None:
            return known
        return History(
            loss=_joined(known.loss, tails.loss),
            step_ms=_joined(known.step_ms, tails.step_ms),
            rank_step_ms=_all_joined(known.rank_step_ms, tails.rank_step_ms),
            rank_peak_bytes=_all_joined(known.rank_peak_bytes, tails.rank_peak_bytes),
        )


def _joined(known: Curve, tail: CurveTail) -> Curve:
    if tail.kept == len(known.steps) and not tail.steps:
        return known
    return Curve(
        (*known.steps[: tail.kept], *tail.steps), (*known.values[: tail.kept], *tail.values)
    )


def _all_joined(known: tuple[Curve, ...], tails: list[CurveTail]) -> tuple[Curve, ...]:
    nothing = Curve()
    curves = (*known, *[nothing] * (len(tails) - len(known)))
    return tuple(_joined(curve, tail) for curve, tail in zip(curves, tails, strict=False))
