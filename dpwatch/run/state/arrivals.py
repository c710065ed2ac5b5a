"""Who came to each collective when: calls still waiting for ranks, and who came last to the others.

A collective goes on when its last rank has come: `wait(r) = last arrival - arrival(r)`. So the rank
that came last made the others wait, however fast it looks otherwise, and they are its victims.
Times of ranks on one host compare to the nanosecond. Those of several hosts do so once the head has
brought them to its own clock, as far as that clock's error (`RunState.clock_error_ns`) lets them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import msgspec

from dpwatch.run.state.series import NONE, Ints, keep_last, median
from dpwatch.wire.calls import CallSignature, call_of
from dpwatch.wire.messages import Collective, Position

OPEN_CALLS = 1024
OPEN_ENTRIES = 1 << 19
"""Calls that are not whole are kept up to these numbers of calls, and of ranks in them."""

ALIKE_CALLS = 64
LATE_STEPS = 192
"""Steps back to which it is known who came late, …"""

LATE_CALLS = 4
"""… and to how many calls of each: those with the widest gaps."""

SAME_SIZE = frozenset({"all_reduce", "broadcast", "reduce", "reduce_scatter"})
"""Ops to which all ranks have to hand in the same number of bytes of the same type."""


class OpenCall(msgspec.Struct):
    """A collective that not every rank is known to have entered: what each rank called."""

    entered: dict[int, Collective] = {}


PACKED = 8
"""Numbers of a packed entry: rank, kind, step, seq, when issued and done, blocked, into its phase;
`NONE` where one is unknown."""


class PackedCalls(msgspec.Struct):
    """The same of many ranks, as a table: an entry a row, whose kind is one of `kinds`."""

    rows: Ints = msgspec.field(default_factory=Ints)
    kinds: list[CallSignature] = []

    def each(self) -> Iterator[tuple[int, Collective]]:
        """Each entry's rank, and what it called; in the order in which they came."""
        for at in range(0, len(self.rows), PACKED):
            rank, kind, *numbers = self.rows[at : at + PACKED]
            yield rank, packed_call(self.kinds[kind], numbers)

    def standing(self) -> Iterator[tuple[CallSignature, int, int]]:
        """Each kind, seq and step that there is, once."""
        rows, kinds = self.rows, self.kinds
        for kind, step, seq in set(
            zip(rows[1::PACKED], rows[2::PACKED], rows[3::PACKED], strict=True)
        ):
            yield kinds[kind], seq, step


def packed_call(kind: CallSignature, numbers: Sequence[int]) -> Collective:
    """A packed entry's call, from what follows its kind."""
    step, seq, issued_ns, *others = numbers
    return call_of(kind, step, seq, issued_ns, *(None if n == NONE else n for n in others))


class Late(msgspec.Struct, array_like=True, frozen=True):
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


class Alike(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A call that all ranks of a group entered alike."""

    seq: int
    step: int
    essence: tuple[str, int, str]
    generation: int = 0


class Mismatch(msgspec.Struct, array_like=True, frozen=True):
    """One place in a group's sequence where ranks called different things."""

    group: str
    seq: int
    calls: dict[int, Collective]

    def is_past(self, call: Alike) -> bool:
        """Whether a call that the group's ranks entered alike came so long after that it is."""
        generation = next(iter(self.calls.values())).generation
        return (call.generation, call.seq) > (generation, self.seq + ALIKE_CALLS)


class Arrivals(msgspec.Struct):
    """All that is known of arrivals.

    Attributes:
        calls: Not whole yet, by `place`; of many ranks they are `packed`.
        alike: By group, the latest calls that all its ranks entered alike, oldest first.
        late: By step, the calls with the widest gaps.
        mismatch: The first place where ranks called different things, None as long as none did.
        generations: By group, the newest of that name; of those before it nothing matters any more.
    """

    calls: dict[str, OpenCall] = {}
    alike: dict[str, list[Alike]] = {}
    late: dict[int, list[Late]] = {}
    mismatch: Mismatch | None = None
    newest: dict[str, int] = {}
    packed: PackedCalls = msgspec.field(default_factory=PackedCalls)
    generations: dict[str, int] = {}

    def opened(self) -> dict[str, OpenCall]:
        """Calls still waiting for ranks, the packed ones too, in groups that are still there."""
        if not self.generations:
            return self._all()
        return {
            key: call
            for key, call in self._all().items()
            if self._is_current(next(iter(call.entered.values())))
        }

    def _all(self) -> dict[str, OpenCall]:
        if not self.packed.rows:
            return self.calls
        found = {key: OpenCall(dict(call.entered)) for key, call in self.calls.items()}
        for rank, record in self.packed.each():
            found.setdefault(place(record), OpenCall()).entered[rank] = record
        return found

    def standing(self) -> Iterator[tuple[str, int, int, tuple[str, int, str]]]:
        """What has been called in calls that are not whole: group, seq, step and essence."""
        for call in self.calls.values():
            for record in call.entered.values():
                if self._is_current(record):
                    yield record.group, record.seq, record.step, essence(record)
        for kind, seq, step in self.packed.standing():
            if self._is_current(kind):
                yield kind.group, seq, step, essence(kind)

    def _is_current(self, call: Collective | CallSignature) -> bool:
        return call.generation >= self.generations.get(call.group, 0)

    def unpack(self) -> None:
        """From now on each call is to be found in `calls`."""
        if self.packed.rows:
            self.calls, self.packed = self._all(), PackedCalls()

    def enter(self, rank: int, record: Collective) -> dict[int, Collective] | None:
        """A rank has entered a call. Returns: what each rank called, once all have."""
        self.unpack()
        key = place(record)
        call = self.calls.get(key)
        if call is None:
            call = self.calls[key] = OpenCall()
            if len(self.calls) > most_open(record.ranks):
                del self.calls[next(iter(self.calls))]
        entered = call.entered
        entered[rank] = record
        if len(entered) < record.ranks:
            return None
        del self.calls[key]
        self._compare(record, entered)
        return entered

    def forget(self, rank: int) -> None:
        """A rank begins anew: what it had entered belongs to nobody's call any more."""
        self.unpack()
        for key, call in list(self.calls.items()):
            call.entered.pop(rank, None)
            if not call.entered:
                del self.calls[key]
        self.alike.clear()
        self.mismatch = None

    def _compare(self, record: Collective, entered: dict[int, Collective]) -> None:
        called = {(call.op, call.nbytes, call.dtype) for call in entered.values()}
        if len(called) > 1 and len({essence(call) for call in entered.values()}) > 1:
            self.mismatch = self.mismatch or Mismatch(record.group, record.seq, entered)
            return
        self.agree(record.group, alike(record, record.seq, record.step))

    def agree(self, group: str, call: Alike) -> None:
        """All ranks of a group have entered a call, and called the same."""
        found = self.mismatch
        kept = self.alike.setdefault(group, [])
        if kept and kept[-1].generation < call.generation:
            kept.clear()
        if not kept or kept[-1].generation == call.generation:
            kept.append(call)
        keep_last(cast("list[object]", kept), ALIKE_CALLS)
        if found is not None and found.group == group and found.is_past(call):
            self.mismatch = None  # they have found together again

    def expected(self, group: str, seq: int, step: int) -> tuple[str, int, str] | None:
        """What was called at the same place of an earlier step, None if that isn't known."""
        known = {call.seq: call for call in self.alike.get(group, ())}
        for open_call in self.opened().values():
            for call in open_call.entered.values():  # the calls of the last moments lack ranks
                if call.group == group and call.seq not in known:
                    known[call.seq] = alike(call, call.seq, call.step)
        first = min((call.seq for call in known.values() if call.step == step), default=seq)
        sizes = Counter(call.step for call in known.values() if call.step < step)
        if not sizes:
            return None
        usual = Counter(sizes.values()).most_common(1)[0][0]
        whole = max(s for s, size in sizes.items() if size == usual)
        before = sorted(call for call in known.values() if call.step == whole)
        return before[seq - first].essence if 0 <= seq - first < len(before) else None

    def book_late(self, entered: dict[int, Collective], issued_ns: list[int]) -> None:
        """Keeps who came last to a call that is whole, if its step has not many wider ones.

        Args:
            entered: What each rank called, …
            issued_ns: … and when.
        """
        ordered_ns = sorted(issued_ns)
        place = len(issued_ns) - 1 - issued_ns[::-1].index(ordered_ns[-1])
        latest = list(entered)[place]
        call = entered[latest]
        gap_ns = ordered_ns[-1] - ordered_ns[-2]
        lag_ns = call.issued_ns - ordered_ns[(len(entered) - 1) // 2]

        def excess_ns() -> int | None:
            return _excess_ns(call, [each for r, each in entered.items() if r != latest])

        waited_ns = (len(issued_ns) * ordered_ns[-1] - sum(issued_ns)) // len(issued_ns)
        self.keep_late(latest, call, gap_ns, lag_ns, waited_ns, excess_ns)

    def keep_late(
        self,
        latest: int,
        call: Collective,
        gap_ns: int,
        lag_ns: int,
        waited_ns: int,
        excess_ns: Callable[[], int | None],
    ) -> None:
        """Keeps who came last to a call, if its step has not many wider ones; see `Late`."""
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
        late = Late(
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


def place(call: Collective) -> str:
    """What calls have in common that belong together."""
    return f"{call.group}/{call.generation}/{call.seq}"


def alike(call: Collective | CallSignature, seq: int, step: int) -> Alike:
    """A call that all ranks entered like this one."""
    return Alike(seq, step, essence(call), call.generation)


def most_open(ranks: int) -> int:
    """Calls of so many ranks that are kept while they are not whole."""
    return min(OPEN_CALLS, max(8, OPEN_ENTRIES // ranks))


def essence(call: Collective | Position | CallSignature) -> tuple[str, int, str]:
    """What ranks have to agree on: the op, and the bytes and type of most ops' payload."""
    if call.op in SAME_SIZE:
        return call.op, call.nbytes, call.dtype
    return call.op, 0, ""


def _excess_ns(call: Collective, others: list[Collective]) -> int | None:
    """How much longer than the others the latest had been in the phase it came from."""
    alike = [other.into_ns for other in others if other.phase == call.phase]
    typical = median(alike)
    return None if call.into_ns is None or typical is None else int(call.into_ns - typical)
