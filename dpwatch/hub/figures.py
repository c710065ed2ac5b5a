"""A lane's typical figures, from its last steps and its collectives' tallies.

Here they are derived lane by lane. `columns` derives the same of many lanes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple

from dpwatch.hub.ordered import PHASE_FIELDS, SORTED, Ordered
from dpwatch.hub.parts import LaneState, RankState
from dpwatch.hub.series import (
    WINDOW,
    Columns,
    Tally,
    Window,
    quantile,
    quantile_ms,
    summed,
)
from dpwatch.hub.state import RunState

DEVICE_TIMES = ("forward_ns", "backward_ns", "optimizer_ns")

_WIDTH = len(Tally.__struct_fields__)
_CALLS, _NBYTES, _WIRE, _TIMED_CALLS, _TIMED_NS, _WAIT_NS, _WAITED_CALLS, _WAITED_NS = range(_WIDTH)


class StepFigures(NamedTuple):
    """What a lane's last steps say; times in milliseconds, None unknown.

    Attributes:
        phases_ms: Median of each of `PHASES`, and whether …
        timed: … any of the device's own is known.
        shares: Of `SHARES`, over the steps in which each was measured.
        samples_per_s: Of this lane.
    """

    p50_ms: float | None
    p95_ms: float | None
    last_ms: float | None
    phases_ms: tuple[float | None, ...]
    timed: bool
    exposed_ms: float | None
    shares: tuple[float | None, ...]
    samples_per_s: float | None


class CallFigures(NamedTuple):
    """What a lane's collectives come to per step, over settled steps (see `settled`).

    Attributes:
        wire_bytes: What it sends, over the steps asked for.
        total_ms: From issue to completion, where each call was timed.
        waited_ms: For which their caller waited, where that is known of each.
        wait_ms: For which this rank waited for others to come.
    """

    wire_bytes: int
    total_ms: float | None
    waited_ms: float | None
    wait_ms: float | None


class OpFigures(NamedTuple):
    """All ranks' calls of one op in one group, over `cells` steps of ranks."""

    cells: int
    calls: int
    nbytes: int
    timed_ns: int
    moved: float
    waited_ms: float | None


class Figures(NamedTuple):
    """Those of all lanes, in their order, and of an op by its key in `RunState.ops`."""

    steps: Sequence[StepFigures]
    calls: Sequence[CallFigures]
    op: Callable[[str], OpFigures]


def of_steps(window: Window) -> StepFigures:
    """Figures of a lane's last steps."""
    kept: Ordered | None = getattr(window, "ordered", None)
    if kept is None:
        kept = window.ordered = Ordered()  # type: ignore[attr-defined]
    kept.follow(window)
    last_ns, fields = kept.last_ns, dict(zip(SORTED, kept.fields, strict=True))
    return StepFigures(
        p50_ms=quantile_ms(kept.took_ns, 0.5),
        p95_ms=quantile_ms(kept.took_ns, 0.95),
        last_ms=None if last_ns is None else last_ns / 1e6,
        phases_ms=tuple(quantile_ms(fields[name], 0.5) for name in PHASE_FIELDS),
        timed=any(fields[name] for name in DEVICE_TIMES),
        exposed_ms=quantile_ms(fields["exposed_ns"], 0.5),
        shares=kept.shares,
        samples_per_s=kept.samples_per_s,
    )


def of_calls(rank: RankState, lane: LaneState, steps: range, common: int) -> CallFigures:
    """Figures of a lane's collectives; see `traffic_steps` for `common`."""
    each = _columns(lane, steps)
    # Waits for other ranks are a rank's; they stand in the row of its first device.
    lanes = [other for other in rank.lanes.values() if other.calls and lane.device == 0]
    if not lane.calls and not lanes:
        return CallFigures(0, None, None, None)
    waits = [each if other is lane else _columns(other, steps) for other in lanes]
    wait_ns = list(map(sum, zip(*(of[_WAIT_NS] for of in waits), strict=True)))
    shared = traffic_steps(rank, common)
    sent = each if shared == steps else _columns(lane, shared)
    return CallFigures(
        wire_bytes=int(quantile(sent[_WIRE], 0.5) or 0),
        total_ms=quantile_ms(_whole_ns(each, _TIMED_CALLS, _TIMED_NS), 0.5),
        waited_ms=quantile_ms(_whole_ns(each, _WAITED_CALLS, _WAITED_NS), 0.5),
        wait_ms=quantile_ms(wait_ns, 0.5),
    )


def of_op(cells: Columns) -> OpFigures:
    """Figures of an op's calls, a tally for each rank and step."""
    calls, nbytes, timed_calls = cells[_CALLS], cells[_NBYTES], cells[_TIMED_CALLS]
    if timed_calls == calls:
        moved = float(sum(nbytes))
    else:
        timed = compress(zip(nbytes, timed_calls, calls, strict=True), timed_calls)
        moved = math.fsum([of * n / whole for of, n, whole in timed])
    return OpFigures(
        cells=len(calls),
        calls=sum(calls),
        nbytes=int(quantile(nbytes, 0.5) or 0),
        timed_ns=sum(compress(cells[_TIMED_NS], timed_calls)),
        moved=moved,
        waited_ms=quantile_ms(_whole_ns(cells, _WAITED_CALLS, _WAITED_NS), 0.5),
    )


def _whole_ns(cells: Columns, known: int, ns: int) -> list[int]:
    """Nanoseconds of the steps in which that is known of each of their calls."""
    calls, some = cells[_CALLS], cells[known]
    if some == calls and 0 not in calls:
        return cells[ns]
    if not any(some):
        return []
    rows = zip(calls, some, cells[ns], strict=True)
    return [took_ns for of, known_of, took_ns in rows if of and known_of >= of]


def _columns(lane: LaneState, steps: range) -> Columns:
    """A lane's collectives in each of these steps, whatever op and group."""
    return _summed([by_step.columns(steps) for by_step in lane.calls.values()], len(steps))


def _summed(each: Sequence[Columns], count: int) -> Columns:
    if not each:
        return [[0] * count] * _WIDTH
    if len(each) == 1:
        return each[0]
    return [list(map(sum, zip(*same, strict=True))) for same in zip(*each, strict=True)]


def tallies(lane: LaneState, steps: Sequence[int]) -> list[Tally]:
    """A lane's collectives in each of these steps, whatever op and group."""
    by_op = [by_step.over(steps) for by_step in lane.calls.values()]
    return (
        [summed(each) for each in zip(*by_op, strict=True)] if by_op else [Tally() for _ in steps]
    )


def cells_of(state: RunState, key: str) -> Columns:
    """A tally for each rank and settled step of an op."""
    found: Columns = [[] for _ in range(_WIDTH)]
    for rank in state.ranks.values():
        for column, more in zip(found, cells_of_rank(rank, key), strict=True):
            column += more
    return found


def cells_of_rank(rank: RankState, key: str) -> Columns:
    """A rank's tally for each settled step of an op, over its devices; none if it never called."""
    steps = settled(rank.steps_done)
    lanes = [lane.calls[key] for lane in rank.lanes.values() if key in lane.calls]
    return _summed([by_step.columns(steps) for by_step in lanes], 0)


def settled(steps_done: int) -> range:
    """Steps that per-step figures are taken over: complete, recent, and not the first.

    The first step is unlike the rest: it makes optimizer state, and DDP its first buckets.
    The newest may still miss a record that comes from another thread.
    """
    end = steps_done - 1 if steps_done > 2 else steps_done
    return range(max(int(end > 1), end - WINDOW // 2), end)


def traffic_steps(rank: RankState, common: int) -> range:
    """Steps that bytes are taken over: those that all ranks have done, so that devices compare.

    A rank that has gone far beyond them is not held back.

    Args:
        rank: The rank.
        common: Steps that all ranks have done.
    """
    done = rank.steps_done
    return settled(common if done - common < WINDOW // 4 else done)


def timed_ms(each: Sequence[Tally]) -> float | None:
    """A step's communication time, known only if each of its calls was timed."""
    if not any(t.calls for t in each) or any(t.timed_calls < t.calls for t in each):
        return None
    return sum(t.timed_ns for t in each) / 1e6
