"""Encodes a run's view for viewers, complete or as changes since a view that they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from dpwatch.run.derive.communication import device_of
from dpwatch.run.derive.downsample import downsample
from dpwatch.run.derive.stacks import stack_views
from dpwatch.run.derive.summarize import elapsed_s, rows_of, tells_output
from dpwatch.run.derive.verdict import ended
from dpwatch.run.model.snapshot import LANE_STEPS, LANES, Printed, Run
from dpwatch.run.model.stacks import RankStacks
from dpwatch.run.model.view_message import (
    CurveTail,
    CurveTails,
    LaneTail,
    OutputTail,
    ViewMessage,
)
from dpwatch.run.state.curves import CURVE_POINTS, Thinned
from dpwatch.run.state.parts import LaneState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.arrays import Floats, Ints, packed
from dpwatch.wire.messages import Step

POINTS = 2 * CURVE_POINTS
"""Points sent per row's curve, at most."""

ALL_POINTS = 32 * POINTS
"""Points sent for all rows together; with more rows, each gets fewer."""

LEAST_POINTS = 64
"""Points sent per row's curve, at least."""

REDRAWN = 4
"""Points at a curve's end that may change when new ones arrive."""

KEPT = 4
"""Number of recent views for which changes can be sent."""

Points = tuple[Ints, Floats]


class Curves(NamedTuple):
    """Points of all curves: the run's loss and step times, each row's step times and peaks."""

    loss: Points
    step_ms: Points
    rank_step_ms: list[Points]
    rank_peak_bytes: list[Points]


class Lane(NamedTuple):
    """The last steps of a row; `pushed` counts all so far."""

    rank: int
    device: str
    host: str
    pushed: int
    steps: tuple[Step, ...]


class Lines(NamedTuple):
    """A rank's printed lines, of which `received` have arrived, and its unterminated ones."""

    received: int
    lines: tuple[Printed, ...]
    open: tuple[Printed, ...]
    left_out: int
    let_go: int


class Content(NamedTuple):
    """The contents of a view; rows are keyed by rank, process and device."""

    run: Run
    elapsed_s: float | None
    tells_output: int
    is_over: bool
    lanes: dict[tuple[int, int, int], Lane]
    output: dict[int, Lines]
    stacks: tuple[RankStacks, ...]
    earlier: list[Run]
    curves: Curves


class ViewWriter:
    """Encodes a run's successive views.

    Args:
        number: The first view gets the next number; numbers must differ from an earlier hub's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._views: dict[int, Content] = {}
        self._written: dict[int, bytes] = {}

    def forget(self) -> None:
        """Makes the next view complete, since steps and lines may have been replaced."""
        self._views.clear()

    def update(self, state: RunState, run: Run, *, curves: bool) -> None:
        """Creates the next view.

        Args:
            state: State of the run.
            run: Its summary.
            curves: Whether to update the curves, or reuse those of the previous view.
        """
        before = self._views.get(self.number)
        self.number += 1
        self._written.clear()
        self._views[self.number] = Content(
            run=run,
            elapsed_s=elapsed_s(state),
            tells_output=tells_output(state),
            is_over=_is_over(state),
            lanes=dict(_lane(state, lane) for lane in rows_of(state)[:LANES]),
            output=_lines(state, before.output if before else {}),
            stacks=stack_views(state),
            earlier=state.earlier,
            curves=curves_of(state) if curves or before is None else before.curves,
        )
        for number in list(self._views)[:-KEPT]:
            del self._views[number]

    def message(self, since: int) -> bytes:
        """The newest view, as changes to view `since`; complete for 0 or an unknown number."""
        since = since if since in self._views and since != self.number else 0
        if since not in self._written:
            now, before = self._views[self.number], self._views.get(since)
            self._written[since] = _encoder.encode(_message(self.number, now, since, before))
        return self._written[since]


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)


def _message(number: int, now: Content, since: int, before: Content | None) -> ViewMessage:
    lanes, output = ({}, {}) if before is None else (before.lanes, before.output)
    return ViewMessage(
        number=number,
        since=since,
        run=now.run,
        elapsed_s=now.elapsed_s,
        tells_output=now.tells_output,
        is_over=now.is_over,
        lanes=[_lane_tail(lane, lanes.get(key)) for key, lane in now.lanes.items()],
        output=[
            _output_tail(r, lines, output.get(r))
            for r, lines in now.output.items()
            if lines is not output.get(r)
        ],
        stacks=None if before and before.stacks == now.stacks else now.stacks,
        earlier=None if before and before.earlier is now.earlier else now.earlier,
        curves=_curve_tails(now.curves, None if before is None else before.curves),
    )


def _is_over(state: RunState) -> bool:
    if state.world_size > 1 or not ended(state):
        return False
    return all(rank.bye and rank.bye.exit is not None for rank in state.ranks.values())


def _lane(state: RunState, lane: LaneState) -> tuple[tuple[int, int, int], Lane]:
    rank, recent = state.ranks[lane.rank], lane.recent
    steps = recent.newest(lane.device, LANE_STEPS)
    name = device_of(rank, lane.device).name
    key = lane.rank, rank.pid, lane.device
    return key, Lane(lane.rank, name, rank.host, recent.pushed, steps)


def _lane_tail(lane: Lane, before: Lane | None) -> LaneTail:
    new = LANE_STEPS if before is None else min(LANE_STEPS, lane.pushed - before.pushed)
    steps = lane.steps[-new:] if new > 0 else ()
    return LaneTail(lane.rank, lane.device, lane.host, lane.pushed, steps)


def _lines(state: RunState, before: dict[int, Lines]) -> dict[int, Lines]:
    """Lines of all ranks; unchanged ones are the same objects as before."""
    found = {}
    for r, printed in state.output.ranks.items():
        known = before.get(r)
        still_open, others = tuple(printed.open.values()), (printed.left_out, printed.let_go)
        if known is None or (known.received, *known[2:]) != (printed.received, still_open, *others):
            known = Lines(printed.received, tuple(printed.lines), still_open, *others)
        found[r] = known
    return found


def _output_tail(r: int, lines: Lines, before: Lines | None) -> OutputTail:
    new = lines.lines[max(0, before.received - lines.let_go) :] if before else lines.lines
    return OutputTail(r, new, lines.open, lines.left_out, lines.let_go)


def curves_of(state: RunState) -> Curves:
    """Points of all curves; with more rows, each row gets fewer points."""
    lanes = rows_of(state)
    points = max(LEAST_POINTS, min(POINTS, ALL_POINTS // max(1, len(lanes))))
    return Curves(
        _points(state.loss),
        _points(state.step_ms),
        downsample([lane.step_ms for lane in lanes], points),
        downsample([lane.peak_bytes for lane in lanes], points),
    )


def _points(curve: Thinned) -> Points:
    return Ints(curve.steps), Floats(curve.values)


def _curve_tails(now: Curves, before: Curves | None) -> CurveTails | None:
    if now is before:
        return None
    known = before or Curves(_NOTHING, _NOTHING, [], [])
    return CurveTails(
        _tail(known.loss, now.loss),
        _tail(known.step_ms, now.step_ms),
        _tails(known.rank_step_ms, now.rank_step_ms),
        _tails(known.rank_peak_bytes, now.rank_peak_bytes),
    )


_NOTHING: Points = (Ints(), Floats())


def _tails(known: Sequence[Points], now: Sequence[Points]) -> list[CurveTail]:
    before = [*known, *[_NOTHING] * (len(now) - len(known))]
    return [_tail(a, b) for a, b in zip(before, now, strict=False)]


def _tail(before: Points, now: Points) -> CurveTail:
    """The new points of a curve, or all if more than its end has changed."""
    (steps, values), count = now, min(len(before[0]), len(now[0]))
    for kept in range(count, max(-1, count - REDRAWN - 1), -1):
        if before[0][:kept] == steps[:kept] and before[1][:kept] == values[:kept]:
            return CurveTail(kept, Ints(steps[kept:]), Floats(values[kept:]))
    return CurveTail(0, steps, values)
