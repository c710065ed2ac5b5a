"""Computes the figures of all lanes at once with numpy; `rank_metrics` defines them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpwatch.run.derive.rank_metrics import (
    DEVICE_TIMES,
    CallFigures,
    Figures,
    OpFigures,
    StepFigures,
    complete_steps,
    op_of,
    per_step_ms,
    traffic_steps,
    waited_ms,
)
from dpwatch.run.state.parts import LaneState, RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import (
    CALLS,
    NBYTES,
    NONE,
    SAMPLES,
    STEP_COLUMNS,
    STEP_WIDTH,
    TALLY_WIDTH,
    TIMED_CALLS,
    TIMED_NS,
    WAIT_NS,
    WAITED_CALLS,
    WAITED_NS,
    WINDOW,
    WIRE,
    ByStep,
)
from dpwatch.wire.messages import PHASES

Array = np.ndarray[Any, Any]

BLOCK = 128
"""Lanes processed at once, so that their data stays in the CPU cache."""

PHASE_FIELDS = tuple(f"{phase}_ns" for phase in PHASES)
SHARES = ("gil_wait_ns", "idle_ns", "runqueue_ns")

MEANS = ("exposed_ns", "comm_ns")
"""Fields reported as means and not medians, so that what happens every few steps counts."""

COMPLETE_STEPS = WINDOW // 2
_MOST = np.iinfo(np.int64).max


def figures_of(state: RunState, lanes: Sequence[LaneState], common: int) -> Figures:
    """Figures of all lanes, in their order.

    Args:
        state: State of the run.
        lanes: Its lanes.
        common: Number of steps that all ranks have completed.
    """
    steps: list[StepFigures] = []
    calls: list[CallFigures] = []
    cells: dict[str, list[Array]] = {key: [] for key in state.ops}
    for some in _blocks(lanes):
        steps += _of_steps(some)
        calls += _of_calls(state, some, common, cells)
    return Figures(steps, calls, lambda key: _of_op(cells[key]))


def _blocks(lanes: Sequence[LaneState]) -> Iterator[Sequence[LaneState]]:
    """Splits lanes into blocks without splitting a rank's lanes."""
    begin = 0
    for end in range(1, len(lanes) + 1):
        is_last = end == len(lanes)
        if is_last or (end - begin >= BLOCK and lanes[end].rank != lanes[end - 1].rank):
            yield lanes[begin:end]
            begin = end


# -- steps ------------------------------------------------------------------------------------


def _of_steps(lanes: Sequence[LaneState]) -> list[StepFigures]:
    column = np.full((STEP_WIDTH, len(lanes), WINDOW), NONE, np.int64)
    for i, lane in enumerate(lanes):
        held = np.frombuffer(lane.recent.rows, np.int64).reshape(-1, STEP_WIDTH)
        column[:, i, : len(held)] = held.T
    pushed = np.array([lane.recent.pushed for lane in lanes])
    there = np.arange(WINDOW) < pushed[:, None]
    took_ns = column[2] - column[1]
    last_ns = took_ns[np.arange(len(lanes)), (pushed - 1) % WINDOW]
    known = {name: column[i] != NONE for i, name in enumerate(STEP_COLUMNS)}
    ordered = _ordered(took_ns, there)
    of = {name: column[i] for i, name in enumerate(STEP_COLUMNS)}
    phases = [_quantiles_ms(*_ordered(of[name], known[name]), 0.5) for name in PHASE_FIELDS]
    shares = [_shares(of[name], took_ns, known[name]) for name in SHARES]
    exposed_ms, comm_ms = (_means_ms(of[name], known[name], of["step"]) for name in MEANS)
    return [
        StepFigures(*each)
        for each in zip(
            _quantiles_ms(*ordered, 0.5),
            _quantiles_ms(*ordered, 0.95),
            [ms if n else None for ms, n in zip((last_ns / 1e6).tolist(), pushed, strict=True)],
            zip(*phases, strict=True),
            np.any([known[PHASE_FIELDS[i]].any(axis=1) for i in DEVICE_TIMES], axis=0).tolist(),
            exposed_ms,
            comm_ms,
            _means_ms(took_ns, there, of["step"]),
            _shares(of["exposed_ns"], took_ns, _without_first(known["exposed_ns"], of["step"])),
            zip(*shares, strict=True),
            _rates(column[SAMPLES], took_ns, of["step"]),
            strict=True,
        )
    ]


def _ordered(values: Array, known: Array) -> tuple[Array, Array]:
    """Sorts each row's known values, with unknown ones last, and counts the known ones."""
    ordered = np.where(known, values, _MOST)
    ordered.sort(axis=1)
    return ordered, known.sum(axis=1)


def _quantiles(ordered: Array, counts: Array, q: float, unit: float = 1.0) -> list[float | None]:
    """`quantiles.quantile` of each row, None if nothing is known."""
    place = q * (counts - 1)
    low = np.maximum(place.astype(np.int64), 0)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    row = np.arange(len(ordered))
    below, above = ordered[row, low] / unit, ordered[row, high] / unit
    found = (below + (above - below) * (place - low)).tolist()
    return [value if n else None for value, n in zip(found, counts.tolist(), strict=True)]


def _quantiles_ms(ordered: Array, counts: Array, q: float) -> list[float | None]:
    return _quantiles(ordered, counts, q, 1e6)


def _shares(ns: Array, took_ns: Array, known: Array) -> list[float | None]:
    sums = np.where(known, ns, 0).sum(axis=1).tolist()
    walls = np.where(known, took_ns, 0).sum(axis=1).tolist()
    return [part / wall if wall else None for part, wall in zip(sums, walls, strict=True)]


def _without_first(known: Array, step: Array) -> Array:
    """Mask of known values without step 0, unless step 0 is the only one."""
    later = known & (step != 0)
    return np.where(later.any(axis=1)[:, None], later, known)


def _means_ms(ns: Array, known: Array, step: Array) -> list[float | None]:
    known = _without_first(known, step)
    sums = np.where(known, ns, 0).sum(axis=1).tolist()
    counts = known.sum(axis=1).tolist()
    return [total / n / 1e6 if n else None for total, n in zip(sums, counts, strict=True)]


def _rates(samples: Array, took_ns: Array, step: Array) -> list[float | None]:
    known = _without_first(samples != NONE, step)
    sums = np.where(known, samples, 0).sum(axis=1).tolist()
    walls = np.where(known, took_ns, 0).sum(axis=1).tolist()
    return [n * 1e9 / wall if wall else None for n, wall in zip(sums, walls, strict=True)]


# -- collectives ------------------------------------------------------------------------------


def _of_calls(
    state: RunState, lanes: Sequence[LaneState], common: int, cells: dict[str, list[Array]]
) -> list[CallFigures]:
    """Figures of a block of lanes; appends their ranks' tallies to `cells`, by op."""
    ranks = [state.ranks[lane.rank] for lane in lanes]
    number = np.array([lane.rank for lane in lanes])
    done = _indices([complete_steps(rank.whole_steps) for rank in ranks])
    shared = _indices([traffic_steps(rank, common) for rank in ranks])
    sums = np.zeros((len(lanes), COMPLETE_STEPS, TALLY_WIDTH), np.int64)
    sent, received = np.zeros(len(lanes), np.int64), np.zeros(len(lanes), np.int64)
    for key in state.ops:
        has = np.array([key in lane.calls for lane in lanes])
        if not has.any():
            continue
        called = [lane.calls[key] for lane in lanes if key in lane.calls]
        held = np.stack([_whole(by_step) for by_step in called])
        found = _at(held, done[has])
        sums[has] += found
        wire = _at(held, shared[has])[:, :, WIRE].sum(axis=1)
        for moved, other in ((sent, "recv"), (received, "send")):
            if op_of(key) != other:
                moved[has] += wire
        first = _first_of_ranks(number[has])
        of_ranks = np.add.reduceat(found, first, axis=0)
        cells[key].append(of_ranks[done[has][first] >= 0])
    busy = sums[:, :, CALLS] > 0
    known = busy & (sums[:, :, WAITED_CALLS] >= sums[:, :, CALLS])
    timed = busy & (sums[:, :, TIMED_CALLS] >= sums[:, :, CALLS])
    each = zip(
        lanes,
        sent.tolist(),
        received.tolist(),
        (shared >= 0).sum(axis=1).tolist(),
        _rank_waits(number, sums).tolist(),
        np.where(known, sums[:, :, WAITED_NS], 0).sum(axis=1).tolist(),
        known.sum(axis=1).tolist(),
        busy.sum(axis=1).tolist(),
        (done >= 0).sum(axis=1).tolist(),
        np.where(timed, sums[:, :, TIMED_NS], 0).sum(axis=1).tolist(),
        timed.sum(axis=1).tolist(),
        strict=True,
    )
    return [_call_figures(ranks[i], *of_lane) for i, of_lane in enumerate(each)]


def _first_of_ranks(numbers: Array) -> Array:
    """Index of each rank's first lane; a rank's lanes are contiguous."""
    return np.flatnonzero(np.diff(numbers, prepend=-1))


def _rank_waits(numbers: Array, sums: Array) -> Array:
    """For each lane, the time its rank waited for others, whichever device called."""
    first = _first_of_ranks(numbers)
    waits = np.add.reduceat(sums[:, :, WAIT_NS].sum(axis=1), first)
    found: Array = np.repeat(waits, np.diff(first, append=len(numbers)))
    return found


def _call_figures(
    rank: RankState,
    lane: LaneState,
    sent: int,
    received: int,
    shared: int,
    wait_ns: int,
    known_ns: int,
    known: int,
    busy: int,
    steps: int,
    timed_ns: int,
    timed: int,
) -> CallFigures:
    # Waiting for other ranks concerns the whole rank; it is shown in its first device's row.
    waits = lane.device == 0 and any(each.calls for each in rank.lanes.values())
    if not lane.calls and not waits:
        return CallFigures(None, None, None, None, None, 0.0)
    return CallFigures(
        sent_bytes=sent / shared if shared else None,
        received_bytes=received / shared if shared else None,
        wait_ms=wait_ns / steps / 1e6 if steps and waits else None,
        waited_ms=waited_ms(known_ns, known, busy, steps) if lane.calls else None,
        timed_ms=timed_ns / timed / 1e6 if timed else None,
        busy=busy / steps if steps else 0.0,
    )


def _indices(ranges: Sequence[range]) -> Array:
    """Steps of each range as a row, padded with -1."""
    starts = np.array([[each.start, each.stop] for each in ranges])
    steps = starts[:, :1] + np.arange(COMPLETE_STEPS)
    return np.where(steps < starts[:, 1:], steps, -1)


def _whole(by_step: ByStep) -> Array:
    """Its cells, expanded to `WINDOW` rows."""
    cells = np.frombuffer(by_step.cells, np.int64).reshape(-1, TALLY_WIDTH)
    if len(cells) == WINDOW:
        return cells
    whole = np.full((WINDOW, TALLY_WIDTH), -1, np.int64)
    held = cells[cells[:, 0] >= 0]
    whole[held[:, 0] % WINDOW] = held
    return whole


def _at(held: Array, steps: Array) -> Array:
    """The cells of these steps, zero for steps without calls."""
    found: Array = held[np.arange(len(held))[:, None], steps % WINDOW]
    found[(found[:, :, 0] != steps) | (steps < 0)] = 0
    return found


def _of_op(cells: Sequence[Array]) -> OpFigures:
    if not cells:
        return OpFigures(0, 0, 0, 0, 0.0, None)
    each = np.concatenate(cells)
    busy = each[:, CALLS] > 0
    timed = each[each[:, TIMED_CALLS] > 0]
    waited = each[busy & (each[:, WAITED_CALLS] >= each[:, CALLS])]
    moved = timed[:, NBYTES] * timed[:, TIMED_CALLS] / timed[:, CALLS]
    return OpFigures(
        cells=len(each),
        calls=int(each[:, CALLS].sum()),
        nbytes=int(each[:, NBYTES].sum()),
        timed_ns=int(timed[:, TIMED_NS].sum()),
        moved=math.fsum(moved.tolist()),
        waited_ms=per_step_ms(
            int(waited[:, WAITED_NS].sum()), len(waited), int(busy.sum()), len(each)
        ),
    )
