"""A lane's typical figures, from its last steps and its collectives' tallies.

Here they are derived lane by lane. `rank_metrics_by_numpy` derives the same of many lanes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple

from dpwatch.quantiles import quantile_ms
from dpwatch.run.state.parts import LaneState, RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import WINDOW, WIRE, Columns, Tally, Window, summed
from dpwatch.run.state.sorted_window import Ordered
from dpwatch.wire.messages import PHASES

DEVICE_TIMES = tuple(map(PHASES.index, ("forward", "backward", "optimizer")))
"""Phases that a CUDA device has times of its own of."""

START_UP_STEPS = 2

IN_STEP = WINDOW // 4
"""Ranks fewer steps apart than this are compared over the same ones."""

NEARLY_ALL = 0.8
"""Of the steps with calls: in so many of them it is known how long their callers waited."""

_WIDTH = len(Tally.__struct_fields__)
_CALLS, _NBYTES, _WIRE, _TIMED_CALLS, _TIMED_NS, _WAIT_NS, _WAITED_CALLS, _WAITED_NS = range(_WIDTH)


class StepFigures(NamedTuple):
    """What a lane's last steps say; times in milliseconds, None unknown.

    Attributes:
        phases_ms: Median of each of `PHASES`, and whether …
        timed: … any of the device's own is known.
        exposed_ms: Communication that compute waited for, the mean of the steps in which that is
            known, …
        exposed_share: … and of those steps' time.
        comm_ms: While any communication was under way, likewise.
        mean_ms: Of the steps themselves.
        shares: Of `SHARES`, over the steps in which each was measured.
        samples_per_s: Of this lane.
    """

    p50_ms: float | None
    p95_ms: float | None
    last_ms: float | None
    phases_ms: tuple[float | None, ...]
    timed: bool
    exposed_ms: float | None
    comm_ms: float | None
    mean_ms: float | None
    exposed_share: float | None
    shares: tuple[float | None, ...]
    samples_per_s: float | None


class CallFigures(NamedTuple):
    """What a lane's collectives come to per step: means over settled steps (see `settled`).

    Attributes:
        sent_bytes: By the algorithm, over the steps asked for; None without any, …
        received_bytes: … and what it receives.
        wait_ms: For which this rank waited for others to come.
        waited_ms: For which callers waited, where that is known of nearly all calls.
    """

    sent_bytes: float | None
    received_bytes: float | None
    wait_ms: float | None
    waited_ms: float | None


class OpFigures(NamedTuple):
    """All ranks' calls of one op in one group, over `cells` steps of ranks.

    Attributes:
        calls: In all of them, …
        nbytes: … and the bytes handed in.
        timed_ns: How long those took whose end is known, and …
        moved: … the bytes handed in to these.
        waited_ms: For which their caller waited, the mean of a step, as far as that is known.
    """

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
    last_ns = kept.last_ns
    exposed_ms, comm_ms, mean_ms = kept.means_ms
    return StepFigures(
        p50_ms=quantile_ms(kept.took_ns, 0.5),
        p95_ms=quantile_ms(kept.took_ns, 0.95),
        last_ms=None if last_ns is None else last_ns / 1e6,
        phases_ms=tuple(quantile_ms(field, 0.5) for field in kept.fields),
        timed=any(kept.fields[place] for place in DEVICE_TIMES),
        exposed_ms=exposed_ms,
        comm_ms=comm_ms,
        mean_ms=mean_ms,
        exposed_share=kept.exposed_share,
        shares=kept.shares,
        samples_per_s=kept.samples_per_s,
    )


def of_calls(rank: RankState, lane: LaneState, steps: range, common: int) -> CallFigures:
    """Figures of a lane's collectives; see `traffic_steps` for `common`."""
    # Waits for other ranks are a rank's; they stand in the row of its first device.
    lanes = [other for other in rank.lanes.values() if other.calls and lane.device == 0]
    if not lane.calls and not lanes:
        return CallFigures(None, None, None, None)
    waits_ns = [sum(_columns(other, steps)[_WAIT_NS]) for other in lanes]
    shared = traffic_steps(rank, common)
    return CallFigures(
        sent_bytes=_wire_bytes(lane, shared, "recv"),
        received_bytes=_wire_bytes(lane, shared, "send"),
        wait_ms=sum(waits_ns) / len(steps) / 1e6 if waits_ns and steps else None,
        waited_ms=waited_ms(*_waited(_columns(lane, steps)), len(steps)) if lane.calls else None,
    )


def _wire_bytes(lane: LaneState, steps: range, other: str) -> float | None:
    """What a lane's calls put on the wire per step, without those of the other direction."""
    if not steps:
        return None
    some = [by_step for key, by_step in lane.calls.items() if op_of(key) != other]
    return sum(sum(by_step.column(WIRE, steps)) for by_step in some) / len(steps)


def op_of(key: str) -> str:
    """The op of a key of `LaneState.calls`."""
    return key.partition("/")[0]


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
        nbytes=sum(nbytes),
        timed_ns=sum(compress(cells[_TIMED_NS], timed_calls)),
        moved=moved,
        waited_ms=per_step_ms(*_waited(cells), len(calls)),
    )


def _waited(cells: Columns) -> tuple[int, int, int]:
    """For how long callers waited in steps in which that is known of each call.

    Returns:
        Nanoseconds, how many such steps there are, and how many in which there are calls.
    """
    calls = cells[_CALLS]
    known = [
        ns
        for of, some, ns in zip(calls, cells[_WAITED_CALLS], cells[_WAITED_NS], strict=True)
        if of and some >= of
    ]
    return sum(known), len(known), len(calls) - calls.count(0)


def waited_ms(known_ns: int, known: int, busy: int, steps: int) -> float | None:
    """`per_step_ms` of what callers waited, unless C++ waits for some of the calls."""
    return per_step_ms(known_ns, known, busy, steps) if known >= NEARLY_ALL * busy else None


def per_step_ms(known_ns: int, known: int, busy: int, steps: int) -> float | None:
    """The mean over steps of a time that is known in some of those in which it is not 0.

    Args:
        known_ns: Its sum, …
        known: … over so many steps.
        busy: Steps in which there is such a time.
        steps: All of them.
    """
    if not busy:
        return 0.0 if steps else None
    return known_ns / known * busy / steps / 1e6 if known else None


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
    steps = settled(rank.whole_steps)
    lanes = [lane.calls[key] for lane in rank.lanes.values() if key in lane.calls]
    return _summed([by_step.columns(steps) for by_step in lanes], 0)


def settled(whole_steps: int) -> range:
    """Steps that per-step figures are taken over: complete, recent, and not the first two.

    These are unlike the rest: in the first DDP broadcasts the model and the optimizer makes its
    state, in the second DDP tells all ranks in which order to fill its buckets from now on.

    Args:
        whole_steps: Steps of which all calls have come.
    """
    first = max(0, min(START_UP_STEPS, whole_steps - 1))
    return range(max(first, whole_steps - WINDOW // 2), whole_steps)


def traffic_steps(rank: RankState, common: int) -> range:
    """Steps that bytes are taken over: those that all ranks have done, so that devices compare.

    A rank that has gone far beyond them is not held back.

    Args:
        rank: The rank.
        common: Steps that all ranks have done.
    """
    done = rank.whole_steps
    return settled(common if done - common < IN_STEP else done)


def timed_ms(each: Sequence[Tally]) -> float | None:
    """A step's communication time, known only if each of its calls was timed."""
    if not any(t.calls for t in each) or any(t.timed_calls < t.calls for t in each):
        return None
    return sum(t.timed_ns for t in each) / 1e6
