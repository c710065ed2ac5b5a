"""Arrival data of collectives: calls still waiting for ranks, and the last arrivals of others.

A collective proceeds when its last rank has entered it: `wait(r) = last arrival - arrival(r)`. So
the last rank made the others wait, however fast it looks otherwise. Times of ranks on one host
compare to the nanosecond. Times of several hosts compare once the head has converted them to its
own clock, within that clock's error (`RunState.clock_error_ns`). `call_order` computes this data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import msgspec

from dpwatch.run.state.series import NONE, keep_last
from dpwatch.wire.arrays import Ints
from dpwatch.wire.calls import CallSignature, call_of
from dpwatch.wire.messages import Collective, Position

RANK, KIND, STEP, SEQ, ISSUED, DONE, BLOCKED, INTO = range(8)
"""Columns of an open call; an unknown time is `NONE`."""

WIDTH = 8

OPEN_CALLS = 1024
OPEN_ENTRIES = 1 << 19
"""Limits on the calls that still wait for ranks, and on the total number of ranks in them."""

MATCHED_CALLS = 64
LATE_STEPS = 192
"""Number of steps whose late arrivals are kept."""

LATE_CALLS = 4
"""Late arrivals kept per step: those with the widest gaps."""

SAME_SIZE = frozenset({"all_reduce", "broadcast", "reduce", "reduce_scatter"})
"""Ops whose payload must have the same size and dtype on all ranks."""


class OpenCalls(msgspec.Struct):
    """Calls that not every rank is known to have entered.

    Attributes:
        rows: `WIDTH` numbers per rank and call (see `call_entries`), in order of arrival.
        kinds: Signatures of the calls, indexed by the `KIND` column.
    """

    rows: Ints = msgspec.field(default_factory=Ints)
    kinds: list[CallSignature] = []

    def by_call(self) -> dict[tuple[str, int, int], dict[int, Collective]]:
        """Each rank's call, by the call's group, generation and sequence number."""
        found: dict[tuple[str, int, int], dict[int, Collective]] = {}
        for at in range(0, len(self.rows), WIDTH):
            rank, kind, *numbers = self.rows[at : at + WIDTH]
            call = packed_call(self.kinds[kind], numbers)
            found.setdefault((call.group, call.generation, call.seq), {})[rank] = call
        return found

    def signatures(self) -> Iterator[tuple[CallSignature, int, int]]:
        """Yields each distinct signature, sequence number and step."""
        columns = (self.rows[row::WIDTH] for row in (KIND, SEQ, STEP))
        for kind, seq, step in set(zip(*columns, strict=True)):
            yield self.kinds[kind], seq, step


def packed_call(kind: CallSignature, numbers: Sequence[int]) -> Collective:
    """Builds a call from its signature and the columns that follow `KIND`."""
    step, seq, issued_ns, *times = numbers
    return call_of(kind, step, seq, issued_ns, *(None if ns == NONE else ns for ns in times))


class LateArrival(msgspec.Struct, array_like=True, frozen=True):
    """The last arrival at a completed collective.

    Attributes:
        step: Step of the last rank.
        latest: The rank that came last.
        arrived_ns: When it arrived.
        gap_ns: Time since the arrival before.
        lag_ns: Time since the median arrival of the others.
        phase: The phase it came from, "" between phases or in a step that was not sampled.
        excess_ns: How much longer it had been in that phase than the median of the others.
        first: Whether this is the group's first call in that step, so that the cause of the delay
            may lie as far back as the previous optimizer step.
        waited_ns: Time that a rank waited for it, averaged over all ranks.
    """

    step: int
    op: str
    group: str
    seq: int
    latest: int
    arrived_ns: int
    gap_ns: int
    lag_ns: int
    phase: str
    excess_ns: int | None
    first: bool
    where: str
    waited_ns: int = 0


class MatchedCall(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A call that all ranks of a group made with the same fingerprint."""

    seq: int
    step: int
    fingerprint: tuple[str, int, str]
    generation: int = 0


class Mismatch(msgspec.Struct, array_like=True, frozen=True):
    """A position in a group's sequence at which ranks made different calls."""

    group: str
    seq: int
    calls: dict[int, Collective]

    def is_past(self, call: MatchedCall) -> bool:
        """Whether the ranks agreed again so long ago, given a later matched call."""
        generation = next(iter(self.calls.values())).generation
        return (call.generation, call.seq) > (generation, self.seq + MATCHED_CALLS)


class Arrivals(msgspec.Struct):
    """Arrivals of all groups.

    Attributes:
        open: Calls still waiting for ranks.
        matched: By group, the latest matched calls, oldest first.
        late: By step, the late arrivals with the widest gaps.
        mismatch: The first position at which ranks made different calls, None if they agree.
        newest: By group, the step of the latest completed call.
        generations: By group name, the newest generation; older ones are ignored.
    """

    open: OpenCalls = msgspec.field(default_factory=OpenCalls)
    matched: dict[str, list[MatchedCall]] = {}
    late: dict[int, list[LateArrival]] = {}
    mismatch: Mismatch | None = None
    newest: dict[str, int] = {}
    generations: dict[str, int] = {}

    def waiting(self) -> Iterator[dict[int, Collective]]:
        """Yields each rank's call, for calls still waiting for ranks in groups that still exist."""
        for (group, generation, _), entered in self.open.by_call().items():
            if generation >= self.generations.get(group, 0):
                yield entered

    def open_signatures(self) -> Iterator[tuple[str, int, int, tuple[str, int, str]]]:
        """Yields group, sequence number, step and fingerprint of the same calls, each once."""
        for kind, seq, step in self.open.signatures():
            if kind.generation >= self.generations.get(kind.group, 0):
                yield kind.group, seq, step, fingerprint(kind)

    def record_mismatch(self, group: str, seq: int, calls: dict[int, Collective]) -> None:
        """Records that the ranks of a group made different calls at one position."""
        self.mismatch = self.mismatch or Mismatch(group, seq, calls)

    def record_match(self, group: str, call: MatchedCall) -> None:
        """Records a call that all ranks of a group have made with the same fingerprint."""
        found = self.mismatch
        kept = self.matched.setdefault(group, [])
        if kept and kept[-1].generation < call.generation:
            kept.clear()
        if not kept or kept[-1].generation == call.generation:
            kept.append(call)
        keep_last(cast("list[object]", kept), MATCHED_CALLS)
        if found is not None and found.group == group and found.is_past(call):
            self.mismatch = None  # the ranks agree again

    def expected(self, group: str, seq: int, step: int) -> tuple[str, int, str] | None:
        """Fingerprint of the call at the same position of an earlier step, None if unknown."""
        known = {call.seq: call for call in self.matched.get(group, ())}
        for entered in self.waiting():  # the latest calls are not matched yet
            for call in entered.values():
                if call.group == group and call.seq not in known:
                    what = fingerprint(call)
                    known[call.seq] = MatchedCall(call.seq, call.step, what, call.generation)
        first = min((call.seq for call in known.values() if call.step == step), default=seq)
        sizes = Counter(call.step for call in known.values() if call.step < step)
        if not sizes:
            return None
        usual = Counter(sizes.values()).most_common(1)[0][0]
        whole = max(s for s, size in sizes.items() if size == usual)
        before = sorted(call for call in known.values() if call.step == whole)
        return before[seq - first].fingerprint if 0 <= seq - first < len(before) else None

    def keep_late(
        self,
        latest: int,
        call: Collective,
        gap_ns: int,
        lag_ns: int,
        waited_ns: int,
        excess_ns: Callable[[], int | None],
    ) -> None:
        """Keeps a `LateArrival` unless its step has `LATE_CALLS` with wider gaps."""
        kept = self.late.get(call.step)
        if kept is None:
            kept = self.late[call.step] = []
            if len(self.late) > LATE_STEPS:
                del self.late[min(self.late)]
            if call.step not in self.late:
                return  # older than all steps that are kept
        first = self.newest.get(call.group) != call.step
        self.newest[call.group] = call.step
        if len(kept) == LATE_CALLS and gap_ns <= kept[-1].gap_ns:
            return
        late = LateArrival(
            step=call.step,
            op=call.op,
            group=call.group,
            seq=call.seq,
            latest=latest,
            arrived_ns=call.issued_ns,
            gap_ns=gap_ns,
            lag_ns=lag_ns,
            phase=call.phase,
            excess_ns=excess_ns(),
            first=first,
            where=call.where,
            waited_ns=waited_ns,
        )
        kept.append(late)
        kept.sort(key=lambda each: -each.gap_ns)
        del kept[LATE_CALLS:]


def matched_call(kind: CallSignature, seq: int, step: int) -> MatchedCall:
    """The `MatchedCall` of a signature."""
    return MatchedCall(seq, step, fingerprint(kind), kind.generation)


def open_calls_limit(ranks: int) -> int:
    """Limit on open calls in groups of this many ranks."""
    return min(OPEN_CALLS, max(8, OPEN_ENTRIES // ranks))


def fingerprint(call: Collective | Position | CallSignature) -> tuple[str, int, str]:
    """What ranks must agree on: the op, and for `SAME_SIZE` ops the payload's size and dtype."""
    if call.op in SAME_SIZE:
        return call.op, call.nbytes, call.dtype
    return call.op, 0, ""
