"""What `booking` does with each collective, with those of many ranks at once, by numpy.

The same sums and the same orders, so that the state is the same but for how calls that are not
whole are kept; a test holds one against the other. What is out of the ordinary (a rank that enters
a call twice, ranks that call different things) is left to `booking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpwatch.plan.traffic import wire_bytes
from dpwatch.run.state import booking, bounds
from dpwatch.run.state.arrivals import PACKED
from dpwatch.run.state.late_durations import LATENCIES, keep_latencies
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.pending import Pending
from dpwatch.run.state.records import take
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
from dpwatch.run.state.settling_steps import settle_steps
from dpwatch.run.state.whole_calls import are_odd, waits_of
from dpwatch.wire.calls import (
    ROW,
    UNKNOWN,
    Calls,
    CallSignature,
    signature_of,
    signatures_of,
    unpack,
)
from dpwatch.wire.collectives import MESSAGES
from dpwatch.wire.messages import Collective

Array = np.ndarray[Any, Any]

RANK, KIND, STEP, SEQ, ISSUED, DONE, BLOCKED, INTO = range(PACKED)
"""Rows of entries, which are the columns of `PackedCalls.rows`: here each lies together."""


MOST_COUNTED = 1 << 22
"""Numbers up to this are told apart by counting, which takes memory by the highest of them."""

TOGETHER = 128
"""Tallies worked on at once: what they hold stays in a processor's cache."""


class Kinds:
    """All kinds of calls there are, numbered in the order in which they came."""

    def __init__(self, known: Sequence[CallSignature]) -> None:
        self.all = list(known)
        self._numbers = {kind: number for number, kind in enumerate(self.all)}
        self._tables: dict[bytes, list[int]] = {}

    def number(self, kind: CallSignature) -> int:
        """A kind's number."""
        found = self._numbers.get(kind)
        if found is None:
            found = self._numbers[kind] = len(self.all)
            self.all.append(kind)
        return found

    def table(self, kinds: bytes) -> list[int]:
        """The numbers of a record's kinds."""
        found = self._tables.get(kinds)
        if found is None:
            found = self._tables[kinds] = [self.number(kind) for kind in signatures_of(kinds)]
        return found


class Ops(NamedTuple):
    """What kinds have in common: `pairs` of a device and an op in its group.

    Attributes:
        pairs: Each pair's device and key of its op.
        pair: Of each kind, the number of its pair, …
        nbytes: … its payload, …
        wire: … and its bytes on the wire.
    """

    pairs: list[tuple[int, str]]
    pair: Array
    nbytes: Array
    wire: Array


def settled(state: RunState, pending: Pending) -> None:
    """Puts what was pending into a state's sums."""
    settle_steps(state, pending.steps)
    pending.steps.clear()
    packed = state.arrivals.packed
    kinds = Kinds(packed.kinds)
    entered = [
        _column(rank, record, kinds)
        for call in state.arrivals.calls.values()
        for rank, record in call.entered.items()
    ]
    held = np.frombuffer(packed.rows, np.int64).reshape(-1, PACKED).T
    old = held.shape[1] + len(entered)
    each = [held, _columns(entered), _entries(pending.calls, kinds)]
    entries = np.concatenate(each, axis=1)
    del each
    messages = _messages(entries, kinds.all)
    if are_odd(entries if messages is None else entries[:, ~messages], kinds.all):
        _one_by_one(state, pending)
    else:
        _together(state, entries, old, kinds.all)
    for r, record in pending.durations:
        rank = state.ranks.get(r)
        if rank is not None:
            take(state, rank, record)


def _one_by_one(state: RunState, pending: Pending) -> None:
    for r, record in pending.calls:
        for call in unpack(record) if isinstance(record, Calls) else (record,):
            take(state, state.ranks[r], call)


def _together(state: RunState, entries: Array, old: int, kinds: Sequence[CallSignature]) -> None:
    """Books entries, and who came last to calls; of those before `old` that has been done."""
    ops = _ops(kinds)
    refused = _refused(state, entries[:, old:], kinds, ops)
    if refused.any():
        entries = entries[:, ~np.concatenate([np.zeros(old, bool), refused])]
    _latencies(state, entries[:, old:], kinds)
    messages = _messages(entries, kinds)
    if messages is None:
        wait_ns = waits_of(state, entries, kinds)
    else:
        wait_ns = np.zeros(entries.shape[1], np.int64)
        wait_ns[~messages] = waits_of(state, entries[:, ~messages], kinds)
        _exchange(state, entries[:, messages], kinds)
    _tally(state, entries, old, wait_ns, ops)


def _messages(entries: Array, kinds: Sequence[CallSignature]) -> Array | None:
    """Which entries are messages from rank to rank, None if none is."""
    are_messages = [kind.op in MESSAGES for kind in kinds]
    return np.array(are_messages)[entries[KIND]] if any(are_messages) else None


def _exchange(state: RunState, entries: Array, kinds: Sequence[CallSignature]) -> None:
    """Books who sends how much to whom."""
    alike, counts = np.unique(entries[[RANK, KIND, STEP]], axis=1, return_counts=True)
    for (r, k, step), calls in zip(alike.T.tolist(), counts.tolist(), strict=True):
        rank, kind = state.ranks.get(r), kinds[k]
        if rank is not None and kind.peer is not None:
            key = f"{kind.op}/{kind.peer}"
            booking.exchanged(state, rank, key, step, calls, calls * kind.nbytes)


# -- entries ----------------------------------------------------------------------------------


def _entries(pending: Sequence[tuple[int, Calls | Collective]], kinds: Kinds) -> Array:
    """A column for each call, in the order in which they came."""
    runs: list[Array] = []
    several: list[tuple[int, Calls]] = []
    for rank, record in pending:
        if isinstance(record, Calls):
            several.append((rank, record))
        else:
            runs += [_table(several, kinds), _columns([_column(rank, record, kinds)])]
            several = []
    last = _table(several, kinds)
    return np.concatenate([*runs, last], axis=1) if runs else last


def _table(calls: Sequence[tuple[int, Calls]], kinds: Kinds) -> Array:
    if not calls:
        return _columns([])
    records = [record for _, record in calls]
    of = np.repeat(np.arange(len(records)), [len(record.which) for record in records])
    numbers: list[int] = []
    offsets: dict[bytes, int] = {}
    for record in records:
        if record.kinds not in offsets:
            offsets[record.kinds] = len(numbers)
            numbers += kinds.table(record.kinds)
    which = np.frombuffer(b"".join([record.which for record in records]), np.uint8)
    rows = np.frombuffer(b"".join([record.rows for record in records]), "<u4")
    step, seq, ago, took, blocked, into = rows.reshape(-1, ROW.size // 4).T
    ended_ns = np.array([record.latest_ns for record in records])[of] - ago
    done = took != UNKNOWN
    place = np.array([offsets[record.kinds] for record in records])[of] + which
    found = np.empty((PACKED, len(of)), np.int64)
    found[RANK] = np.array([rank for rank, _ in calls])[of]
    found[KIND] = np.array(numbers)[place]
    found[STEP] = np.array([record.step for record in records])[of] + step
    found[SEQ] = np.array([record.seq for record in records])[of] + seq
    found[ISSUED] = ended_ns - np.where(done, took, 0)
    found[DONE] = np.where(done, ended_ns, NONE)
    for row, told in ((BLOCKED, blocked), (INTO, into)):
        found[row] = told
        found[row, told == UNKNOWN] = NONE
    return found


def _column(rank: int, call: Collective, kinds: Kinds) -> list[int]:
    known = (call.completed_ns, call.blocked_ns, call.into_ns)
    return [
        rank, kinds.number(signature_of(call)), call.step, call.seq, call.issued_ns,
        *(NONE if each is None else each for each in known),
    ]  # fmt: skip


def _columns(each: Sequence[list[int]]) -> Array:
    found: Array = np.array(each, np.int64).reshape(-1, PACKED).T
    return found


# -- tallies ----------------------------------------------------------------------------------


def _ops(kinds: Sequence[CallSignature]) -> Ops:
    pairs: dict[tuple[int, str], int] = {}
    keys = [(kind.device, f"{kind.op}/{kind.group}") for kind in kinds]
    pair = [pairs.setdefault(key, len(pairs)) for key in keys]
    wire = [wire_bytes(kind.op, kind.nbytes, kind.ranks) for kind in kinds]
    nbytes = [kind.nbytes for kind in kinds]
    return Ops(list(pairs), *(np.array(each, np.int64) for each in (pair, nbytes, wire)))


def _blocks(entries: Array, ops: Ops) -> Array:
    """A number for whose tallies an entry belongs to: its rank and pair."""
    found: Array = entries[RANK] * len(ops.pairs) + ops.pair[entries[KIND]]
    return found


def _refused(state: RunState, entries: Array, kinds: Sequence[CallSignature], ops: Ops) -> Array:
    """Makes room for all that these call. Returns: which entries there is none for."""
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
    for at in np.sort(first[np.isin(found, missing)]).tolist():  # as they came
        rank, kind = state.ranks[int(entries[RANK, at])], kinds[entries[KIND, at]]
        try:
            lane = rank.lanes.get(kind.device) or state.lane(rank, kind.device)
            booking.called(state, rank, lane, f"{kind.op}/{kind.group}", kind)
        except bounds.Full:
            rank.refused += int(np.count_nonzero(blocks == blocks[at]))
            refused.append(blocks[at])
    return np.isin(blocks, refused) if refused else none


def _distinct(numbers: Array) -> list[int]:
    many = not len(numbers) or numbers.max() >= MOST_COUNTED
    found: Array = np.unique(numbers) if many else np.flatnonzero(np.bincount(numbers))
    return [int(number) for number in found]


def _latencies(state: RunState, entries: Array, kinds: Sequence[CallSignature]) -> None:
    """Of each op the latencies of its last calls, as they came."""
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
    """Adds to the sums by step; of entries before `old` only how long they have waited."""
    there = wait_ns > 0
    there[old:] = True
    old = int(np.count_nonzero(there[:old]))
    entries, wait_ns = entries[:, there], wait_ns[there]
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
        if len(some) == TOGETHER:
            _add(some, steps, sums)
            some = []
    _add(some, steps, sums)


def _order(blocks: Array, steps: Array) -> Array:
    """Entries by block and step."""
    least, most = int(steps.min()), int(steps.max())
    span = most - least + 1
    if span * (int(blocks.max()) + 1) < 1 << 62:
        order: Array = np.argsort(blocks * span + (steps - least), kind="stable")
        return order
    apart: Array = np.lexsort((steps, blocks))
    return apart


def _changes(values: Array) -> Array:
    """Where another value begins."""
    found = np.ones(len(values), bool)
    found[1:] = values[1:] != values[:-1]
    return found


def _sums(entries: Array, old: int, wait_ns: Array, ops: Ops, order: Array, begins: Array) -> Array:
    """What is added to rows of `ByStep.cells`, each from where its entries begin in order."""
    kind, done, blocked = entries[KIND], entries[DONE], entries[BLOCKED]
    timed, told = done != NONE, blocked != NONE
    found = np.zeros((len(begins), TALLY_WIDTH), np.int64)
    adds = {
        CALLS: np.ones(len(kind), np.int64),
        NBYTES: ops.nbytes[kind],
        WIRE: ops.wire[kind],
        TIMED_CALLS: timed.astype(np.int64),
        TIMED_NS: np.where(timed, done - entries[ISSUED], 0),
        WAITED_CALLS: told.astype(np.int64),
        WAITED_NS: np.where(told, blocked, 0),
    }
    for column, numbers in adds.items():
        numbers[:old] = 0
        found[:, column] = np.add.reduceat(numbers[order], begins)
    found[:, WAIT_NS] = np.add.reduceat(wait_ns[order], begins)
    return found


def _add(some: Sequence[tuple[RankState, ByStep, slice]], steps: Array, sums: Array) -> None:
    """Adds to several tallies' rows, each what is in a slice; its steps are in order."""
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
    kept = now[:, 0] == steps  # others are older than all that is kept
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
