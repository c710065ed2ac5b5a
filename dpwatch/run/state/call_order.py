"""Matches ranks' calls by group and sequence number, and computes arrival order and waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import astuple

from dpwatch.quantiles import median
from dpwatch.run.state import bounds
from dpwatch.run.state.arrivals import (
    INTO,
    ISSUED,
    KIND,
    RANK,
    SEQ,
    STEP,
    Arrivals,
    OpenCalls,
    fingerprint,
    matched_call,
    open_calls_limit,
)
from dpwatch.run.state.call_entries import Array, call_at, open_calls
from dpwatch.run.state.parts import Covered
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import NONE
from dpwatch.wire.calls import CallSignature

MOST_MARKS = 1 << 26
"""Largest bitmap, in bytes, for finding repeated numbers; above it they are sorted."""


class Segments(NamedTuple):
    """Entries by call: those of one call are `order[begin:end]`, one per rank, as they came."""

    order: Array
    begins: Array
    ends: Array

    def only(self, wanted: Array) -> Segments:
        """The calls selected by a boolean mask."""
        counts = (self.ends - self.begins)[wanted]
        ends = np.cumsum(counts)
        order = self.order[np.repeat(wanted, self.ends - self.begins)]
        return Segments(order, ends - counts, ends)

    def value_range(self, values: Array) -> Array:
        """Each call's highest minus lowest value over its entries."""
        ordered = values[self.order]
        high, low = (each.reduceat(ordered, self.begins) for each in (np.maximum, np.minimum))
        found: Array = high - low
        return found


def match_calls(state: RunState, entries: Array, kinds: Sequence[CallSignature]) -> Array:
    """Records the last arrivals of calls that all ranks have entered; keeps the others open.

    If a rank enters a call twice, the last entry counts.

    Args:
        state: State of the run, whose open calls are replaced.
        entries: Open and new calls (see `call_entries`), in order of arrival.
        kinds: Signatures of the entries.

    Returns:
        For each entry, nanoseconds that its rank waited for the last one while it was in no other
        call; 0 where that is unknown.
    """
    arrivals = state.arrivals
    arrivals.open = OpenCalls()
    if not entries.shape[1]:
        return np.zeros(0, np.int64)
    segments = _segments(entries, kinds)
    order, begins, ends = segments
    counts = ends - begins
    ranks = np.array([kind.ranks for kind in kinds])[entries[KIND, order[ends - 1]]]
    timed = _Timed(entries, segments)
    differ = _differ(entries, kinds, segments)
    whole = np.flatnonzero(counts >= ranks)
    booked: list[int] = []
    for i in whole[np.argsort(order[ends[whole] - 1])].tolist():  # in order of their last entries
        members = order[begins[i] : ends[i]]
        last = entries[:, members[-1]]
        kind, seq = kinds[last[KIND]], int(last[SEQ])
        if differ[i]:
            _compare_calls(arrivals, entries[:, members], kinds)
        else:
            arrivals.record_match(kind.group, matched_call(kind, seq, int(last[STEP])))
        if counts[i] > 1:
            _compare_steps(state, kind, entries[:, members])
        if counts[i] > 1 and timed.compare(state, i):
            booked.append(i)
            if timed.first_step[i] > 0:
                _book_last(state, kinds, timed, i)
    wait_ns = _book_waits(state, entries, segments, timed.last_ns, booked)
    _keep_open(arrivals, entries, kinds, segments.only(counts < ranks))
    return wait_ns


def _differ(entries: Array, kinds: Sequence[CallSignature], segments: Segments) -> Array:
    """Mask of calls whose ranks have different fingerprints."""
    names: dict[tuple[str, int, str], int] = {}
    called = [names.setdefault(fingerprint(kind), len(names)) for kind in kinds]
    found: Array = segments.value_range(np.array(called)[entries[KIND]]) > 0
    return found


def _compare_calls(arrivals: Arrivals, entered: Array, kinds: Sequence[CallSignature]) -> None:
    calls = {int(column[RANK]): call_at(column, kinds) for column in entered.T}
    first = next(iter(calls.values()))
    arrivals.record_mismatch(first.group, first.seq, calls)


def _compare_steps(state: RunState, kind: CallSignature, entered: Array) -> None:
    """Records in which step, by its own count, each rank entered a call."""
    steps = entered[STEP]
    first = int(steps[0])
    alike = bool((steps == first).all())
    if alike and state.offsets.record_equal(kind.group, first, kind.generation):
        return
    by_rank = dict(zip(entered[RANK].tolist(), steps.tolist(), strict=True))
    state.offsets.record(kind.group, by_rank, kind.generation)


def _segments(entries: Array, kinds: Sequence[CallSignature]) -> Segments:
    names: dict[tuple[str, int], int] = {}
    groups = [names.setdefault((kind.group, kind.generation), len(names)) for kind in kinds]
    group, seq = np.array(groups)[entries[KIND]], entries[SEQ]
    order = np.argsort(seq, kind="stable") if len(names) == 1 else np.lexsort((seq, group))
    begins = _begins(group[order], seq[order])
    ends = np.append(begins[1:], len(order))
    call = np.repeat(np.arange(len(begins)), ends - begins)
    rank = entries[RANK, order]
    if _repeats(call * (int(rank.max()) + 1) + rank):
        by_rank = np.lexsort((rank, call))  # stable: a rank's last entry comes last
        rank, call = rank[by_rank], call[by_rank]
        kept = np.ones(len(order), bool)
        kept[by_rank[:-1][(rank[1:] == rank[:-1]) & (call[1:] == call[:-1])]] = False
        order = order[kept]
        begins = _begins(group[order], seq[order])
        ends = np.append(begins[1:], len(order))
    return Segments(order, begins, ends)


def _repeats(numbers: Array) -> bool:
    """Whether any number occurs twice."""
    most = int(numbers.max()) + 1
    if most > MOST_MARKS:
        return len(np.unique(numbers)) < len(numbers)
    marked = np.zeros(most, bool)
    marked[numbers] = True
    return int(np.count_nonzero(marked)) < len(numbers)


def _begins(group: Array, seq: Array) -> Array:
    """Indices at which the entries of another call begin."""
    changes = np.ones(len(seq), bool)
    changes[1:] = (seq[1:] != seq[:-1]) | (group[1:] != group[:-1])
    return np.flatnonzero(changes)


def _book_waits(
    state: RunState, entries: Array, segments: Segments, last_ns: Array, booked: list[int]
) -> Array:
    """Calls `Covered.add` for each entry's rank, call by call.

    The first calls of all ranks are processed together, then the second ones, and so on.

    Returns:
        The result for each entry, in nanoseconds.
    """
    wait_ns = np.zeros(entries.shape[1], np.int64)
    order, begins, ends = segments
    if not booked:
        return wait_ns
    each = np.concatenate([order[begins[i] : ends[i]] for i in booked])
    until = np.repeat(last_ns[booked], (ends - begins)[booked])
    waited = entries[ISSUED, each] < until
    each, until = each[waited], until[waited]
    of = entries[RANK, each]
    if not len(of):
        return wait_ns
    counts = np.bincount(of)
    nth = np.empty(len(of), np.int64)
    nth[np.argsort(of, kind="stable")] = np.arange(len(of)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    numbers = np.flatnonzero(counts).tolist()
    ranks = [rank for r in numbers if (rank := state.ranks.get(r)) is not None]
    held = np.zeros((3, len(counts)), np.int64)
    for rank in ranks:
        held[:, rank.rank] = astuple(rank.waits)
    by_nth = np.argsort(nth, kind="stable")
    for some in np.split(by_nth, np.cumsum(np.bincount(nth))[:-1]):
        entry = each[some]
        wait_ns[entry] = _cover(held, of[some], entries[ISSUED, entry], until[some])
    for rank in ranks:
        rank.waits = Covered(*held[:, rank.rank].tolist())
    return wait_ns


def _cover(held: Array, place: Array, start: Array, end: Array) -> Array:
    """Vectorized `Covered.add`: adds one interval to each of the columns `place` of `held`."""
    before, low, high = held[:, place]
    later = start > high
    begins = np.where(later, start, np.maximum(start, before))
    held[0, place] = np.where(later, high, before)
    held[1, place] = np.where(later, start, np.minimum(low, begins))
    held[2, place] = np.maximum(high, end)
    left = np.maximum(0, np.minimum(end, low) - begins)
    found: Array = np.where(later, end - start, left + np.maximum(0, end - high))
    return found


class _Timed:
    """Entries of each call in order of time.

    Attributes:
        order: Entry indices, sorted by time within each call.
        first_step: Each call's lowest step over its ranks.
    """

    def __init__(self, entries: Array, segments: Segments) -> None:
        order, self.begins, self.ends = segments
        call = np.repeat(np.arange(len(self.begins)), self.ends - self.begins)
        self.order = order[np.lexsort((entries[ISSUED, order], call))]
        self.entries = entries
        self.last_ns = entries[ISSUED, self.order[self.ends - 1]]
        self.apart_ns = self.last_ns - entries[ISSUED, self.order[self.begins]]
        self.first_step = np.minimum.reduceat(entries[STEP, order], self.begins)

    def ordered(self, i: int) -> Array:
        """Entry indices of a call, sorted by time."""
        return self.order[self.begins[i] : self.ends[i]]

    def compare(self, state: RunState, i: int) -> bool:
        """Whether the times of a call's ranks are comparable: on one clock or synced clocks."""
        if self.apart_ns[i] > bounds.APART_NS:
            return False
        if len(state.hosts) < 2:
            return True
        ranks = [state.ranks.get(r) for r in self.entries[RANK, self.ordered(i)].tolist()]
        hosts = {rank.host for rank in ranks if rank is not None}
        return state.clock_error_ns(hosts) is not None


def _book_last(state: RunState, kinds: Sequence[CallSignature], timed: _Timed, i: int) -> None:
    entries = timed.entries
    ordered = timed.ordered(i)
    issued_ns = entries[ISSUED, ordered]
    last_ns = int(issued_ns[-1])
    waited_ns = int((last_ns - issued_ns).sum())
    kind = kinds[entries[KIND, ordered[-1]]]
    tied = ordered[np.searchsorted(issued_ns, last_ns)]
    op = state.ops[f"{kind.op}/{kind.group}"]
    op.book_last(int(entries[RANK, tied]), waited_ns // (len(ordered) - 1))
    latest = entries[:, ordered[-1]]

    def excess_ns() -> int | None:
        others = entries[:, ordered[:-1]]
        same = np.array([each.phase == kind.phase for each in kinds])[others[KIND]]
        known = others[INTO, same & (others[INTO] != NONE)]
        if latest[INTO] == NONE or not len(known):
            return None
        low, high = (len(known) - 1) // 2, len(known) // 2
        ordered_ns = np.partition(known, (low, high))
        typical = median((int(ordered_ns[low]), int(ordered_ns[high]))) or 0.0
        return int(latest[INTO] - typical)

    state.arrivals.keep_late(
        int(latest[RANK]),
        call_at(latest, kinds),
        last_ns - int(issued_ns[-2]),
        last_ns - int(issued_ns[(len(ordered) - 1) // 2]),
        waited_ns // len(ordered),
        excess_ns,
    )


def _keep_open(
    arrivals: Arrivals, entries: Array, kinds: Sequence[CallSignature], left: Segments
) -> None:
    """Keeps the latest incomplete calls, up to `open_calls_limit`."""
    order, begins, ends = left
    if not len(begins):
        return
    by_age = np.argsort(order[begins])  # by each call's first entry
    newest = kinds[entries[KIND, order[begins[by_age[-1]]]]]
    most = open_calls_limit(newest.ranks)
    old = np.zeros(len(begins), bool)
    old[by_age[:-most]] = True
    kept = np.sort(order[~np.repeat(old, ends - begins)])
    arrivals.open = open_calls(entries[:, kept], kinds)
