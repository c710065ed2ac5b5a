"""Adds a table of calls to the sums by rank, device, op and step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpwatch.plan.traffic import wire_bytes
from dpwatch.run.state import bounds
from dpwatch.run.state.arrivals import BLOCKED, DONE, ISSUED, KIND, RANK, STEP
from dpwatch.run.state.call_entries import Array
from dpwatch.run.state.call_order import match_calls
from dpwatch.run.state.late_durations import LATENCIES, add_late_duration, keep_latencies
from dpwatch.run.state.parts import LaneState, OpState, RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import (
    CALLS,
    NBYTES,
    NONE,
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
from dpwatch.wire.calls import CallSignature
from dpwatch.wire.collectives import MESSAGES
from dpwatch.wire.messages import Duration

MOST_COUNTED = 1 << 22
"""Distinct numbers below this are found by counting, whose memory grows with the highest one."""

BLOCK = 128
"""Tallies processed at once, so that their data stays in the CPU cache."""


class Ops(NamedTuple):
    """Columns per call signature, and the distinct pairs of device and op.

    Attributes:
        pairs: Device and key (`op/group`) of each pair.
        pair: Index into `pairs`, per signature.
        nbytes: Payload in bytes, per signature.
        wire: Bytes on the wire, per signature.
    """

    pairs: list[tuple[int, str]]
    pair: Array
    nbytes: Array
    wire: Array


def tally(state: RunState, entries: Array, old: int, kinds: Sequence[CallSignature]) -> None:
    """Adds calls to the sums, and records the last arrivals of those that are complete now.

    Args:
        state: State of the run.
        entries: Table of calls (see `call_entries`), in order of arrival.
        old: Number of leading entries that the sums already include: the open calls.
        kinds: Signatures of the entries.
    """
    ops = _ops(kinds)
    refused = _refused(state, entries[:, old:], kinds, ops)
    if refused.any():
        entries = entries[:, ~np.concatenate([np.zeros(old, bool), refused])]
    _latencies(state, entries[:, old:], kinds)
    messages = _messages(entries, kinds)
    if messages is None:
        wait_ns = match_calls(state, entries, kinds)
    else:
        wait_ns = np.zeros(entries.shape[1], np.int64)
        wait_ns[~messages] = match_calls(state, entries[:, ~messages], kinds)
        _exchange(state, entries[:, messages], kinds)
    _tally(state, entries, old, wait_ns, ops)


def add_duration(state: RunState, rank: RankState, record: Duration) -> None:
    """Adds the duration of a call that the sums already include."""
    key = f"{record.op}/{record.group}"
    op, lane = state.ops.get(key), rank.lanes.get(record.device)
    if op is None or lane is None:
        return
    took = add_late_duration(record, key, lane.calls, lane.late_calls, lane.late)
    if took and record.duration_ns is not None:
        op.timed_late |= record.completed_ns is None
        keep_latencies(op.latency_ms, [record.duration_ns / 1e6], 0)


def _messages(entries: Array, kinds: Sequence[CallSignature]) -> Array | None:
    """Mask of point-to-point messages, None if there are none."""
    are_messages = [kind.op in MESSAGES for kind in kinds]
    return np.array(are_messages)[entries[KIND]] if any(are_messages) else None


def _exchange(state: RunState, entries: Array, kinds: Sequence[CallSignature]) -> None:
    """Adds point-to-point messages to each rank's sums by peer."""
    alike, counts = np.unique(entries[[RANK, KIND, STEP]], axis=1, return_counts=True)
    for (r, k, step), calls in zip(alike.T.tolist(), counts.tolist(), strict=True):
        rank, kind = state.ranks.get(r), kinds[k]
        if rank is not None and kind.peer is not None:
            key = f"{kind.op}/{kind.peer}"
            _exchanged(state, rank, key, step, calls, calls * kind.nbytes)


def _exchanged(
    state: RunState, rank: RankState, key: str, step: int, calls: int, nbytes: int
) -> None:
    """Adds a rank's messages to or from a peer; `key` is `op/peer`."""
    by_step = rank.peers.get(key)
    if by_step is None:
        if rank.cells >= bounds.CELLS_A_RANK or state.cells >= bounds.CELLS:
            return  # its bytes are still part of the sums by op
        rank.cells += 1
        state.cells += 1
        by_step = rank.peers[key] = ByStep()
    at = by_step.at(step)
    if at is not None:
        by_step.cells[at + CALLS] += calls
        by_step.cells[at + NBYTES] += nbytes


def _ops(kinds: Sequence[CallSignature]) -> Ops:
    pairs: dict[tuple[int, str], int] = {}
    keys = [(kind.device, f"{kind.op}/{kind.group}") for kind in kinds]
    pair = [pairs.setdefault(key, len(pairs)) for key in keys]
    wire = [wire_bytes(kind.op, kind.nbytes, kind.ranks) for kind in kinds]
    nbytes = [kind.nbytes for kind in kinds]
    return Ops(list(pairs), *(np.array(each, np.int64) for each in (pair, nbytes, wire)))


def _blocks(entries: Array, ops: Ops) -> Array:
    """Number of the tallies that an entry belongs to, made of its rank and pair."""
    found: Array = entries[RANK] * len(ops.pairs) + ops.pair[entries[KIND]]
    return found


def _refused(state: RunState, entries: Array, kinds: Sequence[CallSignature], ops: Ops) -> Array:
    """Creates the tallies that entries need. Returns a mask of entries beyond the limits."""
    blocks = _blocks(entries, ops)
    missing = []
    for block in _distinct(blocks):
        r, pair = divmod(block, len(ops.pairs))
        device, key = ops.pairs[pair]
        lane = state.ranks[r].lanes.get(device)
        if lane is None or key not in lane.calls or key not in state.ops:
            missing.append(block)
    none = np.zeros(len(blocks), bool)
    if not missing:
        return none
    found, first = np.unique(blocks, return_index=True)
    refused = []
    for at in np.sort(first[np.isin(found, missing)]).tolist():  # in order of arrival
        rank, kind = state.ranks[int(entries[RANK, at])], kinds[entries[KIND, at]]
        try:
            lane = rank.lanes.get(kind.device) or state.lane(rank, kind.device)
            _begin(state, rank, lane, kind)
        except bounds.LimitReached:
            rank.refused += int(np.count_nonzero(blocks == blocks[at]))
            refused.append(blocks[at])
    return np.isin(blocks, refused) if refused else none


def _begin(state: RunState, rank: RankState, lane: LaneState, kind: CallSignature) -> None:
    """Creates the tallies of an op that is new to a lane."""
    if rank.cells >= bounds.CELLS_A_RANK or state.cells >= bounds.CELLS:
        raise bounds.LimitReached
    key = f"{kind.op}/{kind.group}"
    if key not in state.ops:
        if len(state.ops) >= bounds.OPS:
            raise bounds.LimitReached
        state.ops[key] = OpState(kind.op, kind.group, kind.ranks)
    rank.cells += 1
    state.cells += 1
    lane.calls[key] = ByStep()


def _distinct(numbers: Array) -> list[int]:
    many = not len(numbers) or numbers.max() >= MOST_COUNTED
    found: Array = np.unique(numbers) if many else np.flatnonzero(np.bincount(numbers))
    return [int(number) for number in found]


def _latencies(state: RunState, entries: Array, kinds: Sequence[CallSignature]) -> None:
    """Appends the latencies of each op's latest calls, in order of arrival."""
    keys: dict[str, int] = {}
    op = np.array([keys.setdefault(f"{kind.op}/{kind.group}", len(keys)) for kind in kinds])
    of = op[entries[KIND]]
    of[entries[DONE] == NONE] = -1
    names = list(keys)
    for number in np.unique(of[of >= 0]).tolist():
        mine = np.flatnonzero(of == number)
        last = mine[-2 * LATENCIES :]
        took_ms = (entries[DONE, last] - entries[ISSUED, last]) / 1e6
        latencies_ms = state.ops[names[number]].latency_ms
        keep_latencies(latencies_ms, took_ms.tolist(), len(mine) - len(last))


def _tally(state: RunState, entries: Array, old: int, wait_ns: Array, ops: Ops) -> None:
    """Adds entries to the sums by step; the first `old` ones only add their wait."""
    waited = np.flatnonzero(wait_ns[:old])
    entries = np.concatenate([entries[:, waited], entries[:, old:]], axis=1)
    wait_ns = np.concatenate([wait_ns[waited], wait_ns[old:]])
    old = len(waited)
    if not len(wait_ns):
        return
    blocks, steps = _blocks(entries, ops), entries[STEP]
    order = _order(blocks, steps)
    blocks, steps = blocks[order], steps[order]
    new_block = _changes(blocks)
    begins = np.flatnonzero(new_block | _changes(steps))
    sums = _sums(entries, old, wait_ns, ops, order, begins)
    blocks, steps = blocks[begins], steps[begins]
    starts = np.flatnonzero(new_block[begins])
    ends = [*starts[1:].tolist(), len(blocks)]
    some: list[tuple[RankState, ByStep, slice]] = []
    for block, start, end in zip(blocks[starts].tolist(), starts.tolist(), ends, strict=True):
        r, pair = divmod(block, len(ops.pairs))
        device, key = ops.pairs[pair]
        rank = state.ranks.get(r)
        lane = None if rank is None else rank.lanes.get(device)
        tallies = None if lane is None else lane.calls.get(key)
        if rank is not None and tallies is not None:
            some.append((rank, tallies, slice(start, end)))
        if len(some) == BLOCK:
            _add(some, steps, sums)
            some = []
    _add(some, steps, sums)


def _order(blocks: Array, steps: Array) -> Array:
    """Order that sorts entries by block and step."""
    least, most = int(steps.min()), int(steps.max())
    span = most - least + 1
    if span * (int(blocks.max()) + 1) < 1 << 62:
        order: Array = np.argsort(blocks * span + (steps - least), kind="stable")
        return order
    apart: Array = np.lexsort((steps, blocks))
    return apart


def _changes(values: Array) -> Array:
    """Mask of positions whose value differs from the one before."""
    found = np.ones(len(values), bool)
    found[1:] = values[1:] != values[:-1]
    return found


def _sums(entries: Array, old: int, wait_ns: Array, ops: Ops, order: Array, begins: Array) -> Array:
    """Sums to add to rows of `ByStep.cells`, one per run of entries that starts at `begins`."""
    kind, done, blocked = entries[KIND], entries[DONE], entries[BLOCKED]
    timed, waited = done != NONE, blocked != NONE
    found = np.zeros((len(begins), TALLY_WIDTH), np.int64)
    adds = {
        CALLS: np.ones(len(kind), np.int64),
        NBYTES: ops.nbytes[kind],
        WIRE: ops.wire[kind],
        TIMED_CALLS: timed.astype(np.int64),
        TIMED_NS: np.where(timed, done - entries[ISSUED], 0),
        WAITED_CALLS: waited.astype(np.int64),
        WAITED_NS: np.where(waited, blocked, 0),
    }
    for column, numbers in adds.items():
        numbers[:old] = 0
        found[:, column] = np.add.reduceat(numbers[order], begins)
    found[:, WAIT_NS] = np.add.reduceat(wait_ns[order], begins)
    return found


def _add(some: Sequence[tuple[RankState, ByStep, slice]], steps: Array, sums: Array) -> None:
    """Adds each slice of `sums` to its tallies; steps within a slice are in order."""
    if not some:
        return
    held = []
    for _, tallies, part in some:
        if tallies.size < WINDOW or steps[part.stop - 1] - steps[part.start] >= WINDOW:
            for step in steps[part].tolist():
                tallies.at(step)
        held.append(np.frombuffer(tallies.cells, np.int64))
    places = np.cumsum([0, *(len(cells) // TALLY_WIDTH for cells in held)])
    cells = np.concatenate(held).reshape(-1, TALLY_WIDTH)
    counts = [part.stop - part.start for *_, part in some]
    of = np.repeat(np.arange(len(some)), counts)
    size = np.array([tallies.size for _, tallies, _ in some])[of]
    steps = np.concatenate([steps[part] for *_, part in some])
    sums = np.concatenate([sums[part] for *_, part in some])
    at = places[of] + steps % size
    now = cells[at]
    new = (now[:, 0] < steps) & (size == WINDOW)
    now[new] = 0
    now[new, 0] = steps[new]
    kept = now[:, 0] == steps  # the others are older than the window
    added = now + sums
    full = kept & (
        (added.max(axis=1) >= bounds.SUMMED_NS) | (added[:, CALLS] > bounds.CALLS_A_STEP)
    )
    kept &= ~full
    cells[at[new]] = now[new]
    cells[at[kept]] = added[kept]
    seen = np.bincount(of[new], minlength=len(some)).tolist()
    refused = np.bincount(of[full], sums[full, CALLS], len(some)).tolist()
    for i, (rank, tallies, _) in enumerate(some):
        tallies.seen += seen[i]
        rank.refused += int(refused[i])
        held[i][:] = cells[places[i] : places[i + 1]].reshape(-1)
