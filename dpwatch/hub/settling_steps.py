"""Steps of many ranks booked at once, by numpy: what `RunState` does with each as it comes.

A test holds one against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpwatch.hub.parts import OPEN_LOSSES, OpenLoss
from dpwatch.hub.series import NONE, STEP_WIDTH, WINDOW, Thinned, Window, kept_of
from dpwatch.wire.calls import UNKNOWN
from dpwatch.wire.messages import Step, Steps
from dpwatch.wire.steps import ROW

if TYPE_CHECKING:
    from dpwatch.hub.state import RunState

Array = np.ndarray[Any, Any]

STEP, START, END = range(3)
"""Columns of `Window.rows`."""


def settle_steps(state: RunState, pending: Sequence[tuple[int, Steps | Step]]) -> None:
    """Takes in steps of ranks whose devices are known, in the order in which they came."""
    if not pending:
        return
    rows, losses = _table(pending)
    counts = [each.count if isinstance(each, Steps) else 1 for _, each in pending]
    ends = np.cumsum(counts).tolist()
    first_ns = int(rows[:, START].min())
    state.start_ns = first_ns if state.start_ns is None else min(state.start_ns, first_ns)
    ended_ns = np.maximum.reduceat(rows[:, END], [0, *ends[:-1]]).tolist()
    parts: dict[tuple[int, int], list[slice]] = {}
    for (r, record), count, end, end_ns in zip(pending, counts, ends, ended_ns, strict=True):
        parts.setdefault((r, record.device), []).append(slice(end - count, end))
        rank = state.ranks[r]
        rank.progress_ns = max(rank.progress_ns, end_ns)
    took_ms = (rows[:, END] - rows[:, START]) / 1e6
    for (r, device), some in parts.items():
        lane = state.ranks[r].lanes[device]
        mine = np.concatenate([rows[part] for part in some])
        took = np.concatenate([took_ms[part] for part in some])
        _append(lane.recent, mine)
        lane.steps = max(lane.steps, int(mine[:, STEP].max()) + 1)
        _push(lane.step_ms, mine[:, STEP], took)
        if device == 0 and r == next(iter(state.ranks)):
            _push(state.step_ms, mine[:, STEP], took)
    told = [
        (r, step, loss)
        for (r, record), count, end in zip(pending, counts, ends, strict=True)
        if record.device == 0
        for step, loss in zip(
            rows[end - count : end, STEP].tolist(), losses[end - count : end], strict=True
        )
        if loss is not None
    ]
    for r, step, loss in told:
        state.judge_loss(state.ranks[r], step, loss)
    _add_losses(state, [step for _, step, _ in told], [loss for *_, loss in told])


def _append(window: Window, rows: Array) -> None:
    """`Window.push` of each."""
    room = max(0, WINDOW - window.pushed)
    window.rows.frombytes(rows[:room].tobytes())
    window.pushed += min(room, len(rows))
    if len(rows) > room:
        late = rows[room:]
        window.pushed += len(late)
        late = late[-WINDOW:]
        at = np.arange(window.pushed - len(late), window.pushed) % WINDOW
        np.frombuffer(window.rows, np.int64).reshape(-1, STEP_WIDTH)[at] = late


def _push(curve: Thinned, steps: Array, values: Array) -> None:
    """`Thinned.push` of each."""
    kept = steps % curve.stride == 0
    for step, value in zip(steps[kept].tolist(), values[kept].tolist(), strict=True):
        curve.push(step, value)


def _add_losses(state: RunState, steps: list[int], losses: list[float]) -> None:
    """`RunState.add_loss` of each."""
    if not steps:
        return
    each, last, place = np.unique(steps[::-1], return_index=True, return_inverse=True)
    place = place.reshape(-1)[::-1]
    open_ones = [state.losses.get(step) for step in each.tolist()]
    counts = np.bincount(place) + [0 if one is None else one.count for one in open_ones]
    if counts.max() > state.told_size:
        for step, loss in zip(steps, losses, strict=True):
            state.add_loss(step, loss)
        return
    totals = np.array([0.0 if one is None else one.total for one in open_ones])
    np.add.at(totals, place, losses)  # one after the other, as they came
    by_end = np.argsort(-last).tolist()
    for i in by_end:
        state.losses[int(each[i])] = OpenLoss(float(totals[i]), int(counts[i]))
        if counts[i] == state.told_size:
            state.close_loss(int(each[i]))
    while len(state.losses) > OPEN_LOSSES:
        del state.losses[min(state.losses)]


def _table(pending: Sequence[tuple[int, Steps | Step]]) -> tuple[Array, list[float | None]]:
    """Rows as `Window` has them, and their losses."""
    runs: list[Array] = []
    several: list[Steps] = []
    losses: list[float | None] = []
    for _, record in pending:
        if isinstance(record, Steps):
            several.append(record)
            losses += record.losses or [None] * record.count
        else:
            runs += [_rows(several), np.array([kept_of(record)], np.int64)]
            several = []
            losses.append(record.loss)
    return np.concatenate([*runs, _rows(several)]), losses


def _rows(records: Sequence[Steps]) -> Array:
    of = np.repeat(np.arange(len(records)), [record.count for record in records])
    told = np.frombuffer(b"".join([record.rows for record in records]), "<u4")
    told = told.reshape(-1, ROW.size // 4).astype(np.int64)
    found = np.empty((len(told), STEP_WIDTH), np.int64)
    if not len(records):
        return found
    found[:, STEP] = np.array([record.step for record in records])[of] + told[:, 0]
    found[:, END] = np.array([record.latest_ns for record in records])[of] - told[:, 1]
    found[:, START] = found[:, END] - told[:, 2]
    found[:, 3:] = np.where(told[:, 3:] == UNKNOWN, NONE, told[:, 3:])
    return found
