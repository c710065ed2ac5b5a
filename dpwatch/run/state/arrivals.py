"""Who came to each collective when: calls still waiting for ranks, and who came last to the others.

A collective goes on when its last rank has come: `wait(r) = last arrival - arrival(r)`. So the rank
that came last made the others wait, however fast it looks otherwise, and they are its victims.
Times of ranks on one host compare to the nanosecond. Those of several hosts do so once the head has
brought them to its own clock, as far as that clock's error (`RunState.clock_error_ns`) lets them.
`call_order` finds out who came when; this is what is kept of it.
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
"""The numbers of a call that is kept open; `NONE` stands for an unknown time."""

WIDTH = 8

OPEN_CALLS = 1024
OPEN_ENTRIES = 1 << 19
"""Calls that still wait for ranks are kept up to these numbers of calls, and of ranks in them."""

MATCHED_CALLS = 64
LATE_STEPS = 192
"""Steps back to which it is known who came late, …"""

LATE_CALLS = 4
"""… and to how many calls of each: those with the widest gaps."""

SAME_SIZE = frozenset({"all_reduce", "broadcast", "reduce", "reduce_scatter"})
"""Ops to which all ranks have to hand in the same number of bytes of the same type."""


class OpenCalls(msgspec.Struct):
    """Calls that not every rank is known to have entered: who called what.

    Attributes:
        rows: `WIDTH` numbers for each rank in a call (see `call_entries`), in the order in which
            these came.
        kinds: What the numbers of their kinds stand for.
    """

    rows: Ints = msgspec.field(default_factory=Ints)
    kinds: list[CallSignature] = []

    def by_call(self) -> dict[tuple[str, int, int], dict[int, Collective]]:
        """By group, generation and number of a call, what each rank called that has entered it."""
        found: dict[tuple[str, int, int], dict[int, Collective]] = {}
        for at in range(0, len(self.rows), WIDTH):
            rank, kind, *numbers = self.rows[at : at + WIDTH]
            call = packed_call(self.kinds[kind], numbers)
            found.setdefault((call.group, call.generation, call.seq), {})[rank] = call
        return found

    def signatures(self) -> Iterator[tuple[CallSignature, int, int]]:
        """Each kind, number and step of a call that there is, once."""
        columns = (self.rows[row::WIDTH] for row in (KIND, SEQ, STEP))
        for kind, seq, step in set(zip(*columns, strict=True)):
            yield self.kinds[kind], seq, step


def packed_call(kind: CallSignature, numbers: Sequence[int]) -> Collective:
    """A call of that kind, from the numbers that follow its kind."""
    step, seq, issued_ns, *times = numbers
    return call_of(kind, step, seq, issued_ns, *(None if ns == NONE else ns for ns in times))


class LateArrival(msgspec.Struct, array_like=True, frozen=True):
    """A collective that is over, and who came last to it.

    Attributes:
        step: Step of the latest rank.
        latest: The rank that came last.
        arrived_ns: When it did.
        gap_ns: How long after the last but one.
        lag_ns: How long after the median of the others.
        phase: The phase it came from, "" between phases or where nobody looked.
        excess_ns: How much longer than the median of the others it had been in that phase.
        first: No other call of that step and group came before, so that what delayed it can lie
            as far back as the optimizer's step before.
        waited_ns: How long a rank waited for it, the mean over all of them.
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
    """A call that all ranks of a group entered alike."""

    seq: int
    step: int
    fingerprint: tuple[str, int, str]
    generation: int = 0


class Mismatch(msgspec.Struct, array_like=True, frozen=True):
    """One place in a group's sequence where ranks called different things."""

    group: str
    seq: int
    calls: dict[int, Collective]

    def is_past(self, call: MatchedCall) -> bool:
        """Whether a call that the group's ranks entered alike came so long after that it is."""
        generation = next(iter(self.calls.values())).generation
        return (call.generation, call.seq) > (generation, self.seq + MATCHED_CALLS)


class Arrivals(msgspec.Struct):
    """All that is known of arrivals.

    Attributes:
        open: Calls still waiting for ranks.
        matched: By group, the latest calls that all its ranks entered alike, oldest first.
        late: By step, the calls with the widest gaps.
        mismatch: The first place where ranks called different things, None as long as none did.
        newest: By group, the step of the latest of all those calls.
        generations: By group, the newest of that name; of those before it nothing matters any more.
    """

    open: OpenCalls = msgspec.field(default_factory=OpenCalls)
    matched: dict[str, list[MatchedCall]] = {}
    late: dict[int, list[LateArrival]] = {}
    mismatch: Mismatch | None = None
    newest: dict[str, int] = {}
    generations: dict[str, int] = {}

    def waiting(self) -> Iterator[dict[int, Collective]]:
        """What each rank called, of calls still waiting for ranks in groups that still exist."""
        for (group, generation, _), entered in self.open.by_call().items():
            if generation >= self.generations.get(group, 0):
                yield entered

    def open_signatures(self) -> Iterator[tuple[str, int, int, tuple[str, int, str]]]:
        """Of the same calls: group, number, step and fingerprint, each once."""
        for kind, seq, step in self.open.signatures():
            if kind.generation >= self.generations.get(kind.group, 0):
                yield kind.group, seq, step, fingerprint(kind)

    def differ(self, group: str, seq: int, calls: dict[int, Collective]) -> None:
        """All ranks of a group have entered a call, and called different things."""
        self.mismatch = self.mismatch or Mismatch(group, seq, calls)

    def agree(self, group: str, call: MatchedCall) -> None:
        """All ranks of a group have entered a call, and called the same."""
        found = self.mismatch
        kept = self.matched.setdefault(group, [])
        if kept and kept[-1].generation < call.generation:
            kept.clear()
        if not kept or kept[-1].generation == call.generation:
            kept.append(call)
        keep_last(cast("list[object]", kept), MATCHED_CALLS)
        if found is not None and found.group == group and found.is_past(call):
            self.mismatch = None  # they have found together again

    def expected(self, group: str, seq: int, step: int) -> tuple[str, int, str] | None:
        """What was called at the same place of an earlier step, None if that isn't known."""
        known = {call.seq: call for call in self.matched.get(group, ())}
        for entered in self.waiting():  # the calls of the last moments lack ranks
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
        """Keeps who came last to a call, if its step has not many wider ones; see `LateArrival`."""
        kept = self.late.get(call.step)
        if kept is None:
            kept = self.late[call.step] = []
            if len(self.late) > LATE_STEPS:
                del self.late[min(self.late)]
            if call.step not in self.late:
                return  # older than all that is kept
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
    """A call that all ranks entered like this one."""
    return MatchedCall(seq, step, fingerprint(kind), kind.generation)


def most_open(ranks: int) -> int:
    """Calls of so many ranks that are kept while they wait for others."""
    return min(OPEN_CALLS, max(8, OPEN_ENTRIES // ranks))


def fingerprint(call: Collective | Position | CallSignature) -> tuple[str, int, str]:
    """What ranks have to agree on: the op, and the bytes and type of most ops' payload."""
    if call.op in SAME_SIZE:
        return call.op, call.nbytes, call.dtype
    return call.op, 0, ""
