"""Adds steps to their lanes' windows and curves, and their losses to the run's mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpwatch.run.state.parts import OPEN_LOSSES, OpenLoss
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import NONE, STEP_BYTES, STEP_WIDTH, step_row
from dpwatch.wire.calls import UNKNOWN
from dpwatch.wire.messages import Step, Steps
from dpwatch.wire.steps import ROW

Array = np.ndarray[Any, Any]

STEP, START, END = range(3)
"""Columns of `Window.rows`."""

DEVICE_BITS = 10


def last_samples(record: Steps | Step) -> int:
    """Batch elements of a record's last step, 0 if unknown."""
    if isinstance(record, Step):
        return record.samples or 0
    samples = int.from_bytes(record.rows[-4:], "little")  # the last number of the last row
    return 0 if samples == UNKNOWN else samples


def add_steps(state: RunState, pending: Sequence[tuple[int, Steps | Step]]) -> None:
    """Adds steps in order of arrival; their lanes must exist."""
    if not pending:
        return
    rows, losses = _table(pending)
    counts = [each.count if isinstance(each, Steps) else 1 for _, each in pending]
    ranks = np.repeat([r for r, _ in pending], counts)
    devices = np.repeat([record.device for _, record in pending], counts)
    _add_rows(state, rows, ranks, devices)
    wanted = devices == 0
    wanted &= [loss is not None for loss in losses] if None in losses else True
    numbers = np.array(losses, float)[wanted]  # without unknown ones
    _record_losses(state, ranks[wanted], rows[wanted, STEP], numbers)
    _add_losses(state, rows[wanted, STEP], numbers)


def _add_rows(state: RunState, rows: Array, ranks: Array, devices: Array) -> None:
    """Adds the steps to each device's lane."""
    first_ns = int(rows[:, START].min())
    state.start_ns = first_ns if state.start_ns is None else min(state.start_ns, first_ns)
    lanes = (ranks << DEVICE_BITS) + devices
    order = np.argsort(lanes, kind="stable")
    rows, lanes = rows[order], lanes[order]
    took_ms = ((rows[:, END] - rows[:, START]) / 1e6).tolist()
    steps = rows[:, STEP].tolist()
    held = rows.data.cast("B")
    begins = np.flatnonzero(np.diff(lanes, prepend=-1))
    ends = [*begins[1:].tolist(), len(rows)]
    last_steps = np.maximum.reduceat(rows[:, STEP], begins).tolist()
    last_ns = np.maximum.reduceat(rows[:, END], begins).tolist()
    leader = next(iter(state.ranks))
    numbers = lanes[begins].tolist()
    for i, (number, begin, end) in enumerate(zip(numbers, begins.tolist(), ends, strict=True)):
        rank = state.ranks[number >> DEVICE_BITS]
        lane = rank.lanes[number & (1 << DEVICE_BITS) - 1]
        rank.progress_ns = max(rank.progress_ns, last_ns[i])
        lane.steps = max(lane.steps, last_steps[i] + 1)
        rank.whole_steps = max(rank.whole_steps, last_steps[i] + 1)
        lane.recent.extend(held[begin * STEP_BYTES : end * STEP_BYTES])
        lane.step_ms.extend(steps[begin:end], took_ms[begin:end])
        if lane.device == 0 and rank.rank == leader:
            state.step_ms.extend(steps[begin:end], took_ms[begin:end])


def _record_losses(state: RunState, ranks: Array, steps: Array, losses: Array) -> None:
    """Calls `RunState.record_loss` for the losses."""
    last = np.arange(len(ranks))
    if np.isfinite(losses).all():  # then only each rank's last one matters
        _, last = np.unique(ranks[::-1], return_index=True)
        last = len(ranks) - 1 - last
    for r, step, loss in zip(
        ranks[last].tolist(), steps[last].tolist(), losses[last].tolist(), strict=True
    ):
        state.record_loss(state.ranks[r], step, loss)


def _add_losses(state: RunState, steps: Array, losses: Array) -> None:
    """Equivalent of `RunState.add_loss` for all losses."""
    if not len(steps):
        return
    each, last, place = np.unique(steps[::-1], return_index=True, return_inverse=True)
    place = place.reshape(-1)[::-1]
    open_ones = [state.losses.get(step) for step in each.tolist()]
    counts = np.bincount(place) + [0 if one is None else one.count for one in open_ones]
    if counts.max() > state.world_size:
        for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
            state.add_loss(step, loss)
        return
    totals = np.array([0.0 if one is None else one.total for one in open_ones])
    np.add.at(totals, place, losses)  # sequentially, in order of arrival
    by_end = np.argsort(-last).tolist()
    for i in by_end:
        state.losses[int(each[i])] = OpenLoss(float(totals[i]), int(counts[i]))
        if counts[i] == state.world_size:
            state.close_loss(int(each[i]))
    while len(state.losses) > OPEN_LOSSES:
        del state.losses[min(state.losses)]


def _table(pending: Sequence[tuple[int, Steps | Step]]) -> tuple[Array, list[float | None]]:
    """Rows in the format of `Window`, and their losses."""
    runs: list[Array] = []
    several: list[Steps] = []
    losses: list[float | None] = []
    for _, record in pending:
        if isinstance(record, Steps):
            several.append(record)
            losses += record.losses or [None] * record.count
        else:
            runs += [_rows(several), np.array([step_row(record)], np.int64)]
            several = []
            losses.append(record.loss)
    return np.concatenate([*runs, _rows(several)]), losses


def _rows(records: Sequence[Steps]) -> Array:
    of = np.repeat(np.arange(len(records)), [record.count for record in records])
    packed = np.frombuffer(b"".join([record.rows for record in records]), "<u4")
    packed = packed.reshape(-1, ROW.size // 4).astype(np.int64)
    found = np.empty((len(packed), STEP_WIDTH), np.int64)
    if not len(records):
        return found
    found[:, STEP] = np.array([record.step for record in records])[of] + packed[:, 0]
    found[:, END] = np.array([record.latest_ns for record in records])[of] - packed[:, 1]
    found[:, START] = found[:, END] - packed[:, 2]
    found[:, 3:] = np.where(packed[:, 3:] == UNKNOWN, NONE, packed[:, 3:])
    return found
