"""The figures of `rank_metrics`, of many lanes at once, by numpy.

The same sums, medians and interpolations in the same order, so both give the same numbers; a test
holds one against the other. Lanes of ranks with several devices or copies are few, since such a
rank is one process, and are left to `rank_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpwatch.run.derive.rank_metrics import (
    DEVICE_TIMES,
    CallFigures,
    Figures,
    OpFigures,
    StepFigures,
    cells_of_rank,
    of_calls,
    op_of,
    per_step_ms,
    settled,
    traffic_steps,
    waited_ms,
)
from dpwatch.run.state.parts import LaneState
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
from dpwatch.run.state.sorted_window import MEANS, PHASE_FIELDS, SHARES

Array = np.ndarray[Any, Any]

TOGETHER = 128
"""Lanes worked on at once: what they hold stays in a processor's cache."""

SETTLED = WINDOW // 2
_MOST = np.iinfo(np.int64).max


def figures(state: RunState, lanes: Sequence[LaneState], common: int) -> Figures:
    """Figures of all lanes, in their order.

    Args:
        state: The run's.
        lanes: Its lanes.
        common: Steps that all ranks have done.
    """
    steps: list[StepFigures] = []
    calls: list[CallFigures | None] = []
    cells: dict[str, list[Array]] = {key: [] for key in state.ops}
    for at in range(0, len(lanes), TOGETHER):
        some = lanes[at : at + TOGETHER]
        steps += _of_steps(some)
        calls += _of_calls(state, some, common, cells)
    for key in state.ops:
        cells[key] += _cells_of_others(state, key)
    return Figures(
        steps,
        [
            _lone(state, lane, common) if known is None else known
            for lane, known in zip(lanes, calls, strict=True)
        ],
        lambda key: _of_op(cells[key]),
    )


def _lone(state: RunState, lane: LaneState, common: int) -> CallFigures:
    rank = state.ranks[lane.rank]
    return of_calls(rank, lane, settled(rank.whole_steps), common)


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
    """Each row's known values in order, the unknown after them; and how many are known."""
    ordered = np.where(known, values, _MOST)
    ordered.sort(axis=1)
    return ordered, known.sum(axis=1)


def _quantiles(ordered: Array, counts: Array, q: float, unit: float = 1.0) -> list[float | None]:
    """`quantiles.quantile` of each row, None where nothing is known."""
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
    """Which values count: those of later steps than the first, where there are any."""
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
) -> list[CallFigures | None]:
    """Figures of those lanes that are their rank's only one; their cells go to `cells`, by op."""
    ranks = [state.ranks[lane.rank] for lane in lanes]
    lone = np.array([len(rank.lanes) == 1 for rank in ranks])
    done = _indices([settled(rank.whole_steps) for rank in ranks])
    shared = _indices([traffic_steps(rank, common) for rank in ranks])
    sums = np.zeros((len(lanes), SETTLED, TALLY_WIDTH), np.int64)
    sent, received = np.zeros(len(lanes), np.int64), np.zeros(len(lanes), np.int64)
    for key in state.ops:
        has = np.array([key in lane.calls for lane in lanes]) & lone
        if not has.any():
            continue
        held = np.stack(
            [_whole(lane.calls[key]) for lane, ok in zip(lanes, has.tolist(), strict=True) if ok]
        )
        found = _at(held, done[has])
        sums[has] += found
        wire = _at(held, shared[has])[:, :, WIRE].sum(axis=1)
        for moved, other in ((sent, "recv"), (received, "send")):
            if op_of(key) != other:
                moved[has] += wire
        cells[key].append(found[done[has] >= 0])
    busy = sums[:, :, CALLS] > 0
    told = busy & (sums[:, :, WAITED_CALLS] >= sums[:, :, CALLS])
    each = zip(
        lanes,
        lone.tolist(),
        sent.tolist(),
        received.tolist(),
        (shared >= 0).sum(axis=1).tolist(),
        sums[:, :, WAIT_NS].sum(axis=1).tolist(),
        np.where(told, sums[:, :, WAITED_NS], 0).sum(axis=1).tolist(),
        told.sum(axis=1).tolist(),
        busy.sum(axis=1).tolist(),
        (done >= 0).sum(axis=1).tolist(),
        strict=True,
    )
    return [_call_figures(lane, *of_lane) if only else None for lane, only, *of_lane in each]


def _call_figures(
    lane: LaneState,
    sent: int,
    received: int,
    shared: int,
    wait_ns: int,
    known_ns: int,
    known: int,
    busy: int,
    steps: int,
) -> CallFigures:
    if not lane.calls:
        return CallFigures(None, None, None, None)
    return CallFigures(
        sent_bytes=sent / shared if shared else None,
        received_bytes=received / shared if shared else None,
        wait_ms=wait_ns / steps / 1e6 if steps and lane.device == 0 else None,
        waited_ms=waited_ms(known_ns, known, busy, steps),
    )


def _indices(ranges: Sequence[range]) -> Array:
    """Steps, a row for each range, -1 after its end."""
    starts = np.array([[each.start, each.stop] for each in ranges])
    steps = starts[:, :1] + np.arange(SETTLED)
    return np.where(steps < starts[:, 1:], steps, -1)


def _whole(by_step: ByStep) -> Array:
    """Its cells as they would lie with room for all steps."""
    cells = np.frombuffer(by_step.cells, np.int64).reshape(-1, TALLY_WIDTH)
    if len(cells) == WINDOW:
        return cells
    whole = np.full((WINDOW, TALLY_WIDTH), -1, np.int64)
    held = cells[cells[:, 0] >= 0]
    whole[held[:, 0] % WINDOW] = held
    return whole


def _at(held: Array, steps: Array) -> Array:
    """The cells of these steps, zero where nothing happened in one."""
    found: Array = held[np.arange(len(held))[:, None], steps % WINDOW]
    found[(found[:, :, 0] != steps) | (steps < 0)] = 0
    return found


def _cells_of_others(state: RunState, key: str) -> list[Array]:
    """The cells of ranks that have several lanes."""
    found = []
    for rank in state.ranks.values():
        cells = cells_of_rank(rank, key) if len(rank.lanes) > 1 else []
        if cells and cells[0]:
            found.append(np.array([[0] * len(cells[0]), *cells], np.int64).T)
    return found


def _of_op(cells: Sequence[Array]) -> OpFigures:
    if not cells:
        return OpFigures(0, 0, 0, 0, 0.0, None)
    each = np.concatenate(cells)
    busy = each[:, CALLS] > 0
    timed = each[each[:, TIMED_CALLS] > 0]
    told = each[busy & (each[:, WAITED_CALLS] >= each[:, CALLS])]
    moved = timed[:, NBYTES] * timed[:, TIMED_CALLS] / timed[:, CALLS]
    return OpFigures(
        cells=len(each),
        calls=int(each[:, CALLS].sum()),
        nbytes=int(each[:, NBYTES].sum()),
        timed_ns=int(timed[:, TIMED_NS].sum()),
        moved=math.fsum(moved.tolist()),
        waited_ms=per_step_ms(int(told[:, WAITED_NS].sum()), len(told), int(busy.sum()), len(each)),
    )
