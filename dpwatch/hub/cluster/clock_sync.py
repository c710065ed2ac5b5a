"""Estimates the offsets of other hosts' monotonic clocks, with error bounds.

An offset is what to add to another host's time to get this host's. Two things bound it strictly,
since nothing arrives before it was sent:

- an exchange of messages, sent here, stamped there and back here: `sent <= there + offset <= back`;
- a collective that needs every rank: it completes on no rank before the last one has entered it.

A third narrows it: ranks on all hosts complete such a call at about the same time, so the median
difference of their completions is close to the offset. Its error is estimated from their scatter,
and from how far apart ranks of one host complete, since one host may always be later by that much.
Clocks also drift, so older observations count less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from dpwatch.quantiles import median
from dpwatch.wire.calls import CallSignature, unpack
from dpwatch.wire.messages import AnyRecord, Calls, Collective

DRIFT = 100e-6
"""Largest assumed difference in rate between two hosts' clocks."""

EXCHANGES, CALLS = 32, 32
FEWEST_CALLS = 16
"""Completions needed to estimate their scatter."""

RECENT_NS = 20_000_000_000
OPEN_CALLS = 512
MANY_RANKS = 64
NORMAL = 1.4826
"""Ratio of a normal distribution's standard deviation to its median absolute deviation."""

NEED_ALL = frozenset({"all_reduce", "barrier", "all_gather", "reduce_scatter"})
"""Ops that complete on no rank before every rank has entered them."""


class Estimate(msgspec.Struct, frozen=True):
    """A host's clock offset, its largest error, and its source.

    `source` is `collectives` if these narrowed it down, else `exchange` (of messages).
    """

    offset_ns: int
    error_ns: int
    source: str


class Bound(msgspec.Struct, frozen=True, array_like=True):
    """Bounds of an offset at a time of this host's clock."""

    at_ns: int
    low_ns: int
    high_ns: int

    def at(self, now_ns: int) -> tuple[int, int]:
        """The bounds at another time, widened by the possible drift."""
        drift_ns = int(DRIFT * abs(now_ns - self.at_ns))
        return self.low_ns - drift_ns, self.high_ns + drift_ns


class CompletedCall(msgspec.Struct, frozen=True, array_like=True):
    """A collective that completed on both hosts.

    Attributes:
        bound: Bounds that it implies for the offset.
        apart_ns: First completion here minus first completion there.
        within_ns: Spread of completions within one host, the wider of the two.
    """

    bound: Bound
    apart_ns: int
    within_ns: int


class HostClock:
    """Offset of one other host's clock."""

    def __init__(self) -> None:
        self._exchanges: deque[Bound] = deque(maxlen=EXCHANGES)
        self._calls: deque[CompletedCall] = deque(maxlen=CALLS)
        self._used_ns: int | None = None

    def exchange(self, sent_ns: int, there_ns: int, back_ns: int) -> None:
        """Adds a message exchange: sent here, stamped there, answer received here."""
        if back_ns >= sent_ns:
            self._exchanges.append(Bound(back_ns, sent_ns - there_ns, back_ns - there_ns))

    def call(self, done: CompletedCall) -> None:
        """Adds a collective that completed on both hosts."""
        if done.bound.low_ns <= done.bound.high_ns:
            self._calls.append(done)

    def estimate(self, now_ns: int) -> Estimate | None:
        """The current offset; it is unchanged as long as it lies well within the bounds."""
        self._forget_contradicted(now_ns)
        sure = _common(self._exchanges, now_ns)
        exchanged = sure
        calls = [call for call in self._calls if now_ns - call.bound.at_ns <= RECENT_NS]
        for call in calls:
            low_ns, high_ns = call.bound.at(now_ns)
            tried = (low_ns, high_ns) if sure is None else _narrowed(sure, low_ns, high_ns)
            sure = tried or sure  # ignored if contradictory: ranks may have numbered differently
        if sure is None:
            return None
        close = _scatter(calls, now_ns)
        if close is not None and close[1] - close[0] < sure[1] - sure[0]:
            sure = _narrowed(sure, *close) or sure
        return self._stable_estimate(*sure, "exchange" if sure == exchanged else "collectives")

    def _stable_estimate(self, low_ns: int, high_ns: int, source: str) -> Estimate:
        middle_ns, half_ns = (low_ns + high_ns) // 2, (high_ns - low_ns + 1) // 2
        if self._used_ns is None or abs(self._used_ns - middle_ns) > half_ns // 2:
            self._used_ns = middle_ns
        return Estimate(self._used_ns, half_ns + abs(self._used_ns - middle_ns), source)

    def _forget_contradicted(self, now_ns: int) -> None:
        """Drops older exchanges that contradict newer ones: a clock has jumped."""
        while len(self._exchanges) > 1 and _common(self._exchanges, now_ns) is None:
            self._exchanges.popleft()
            self._calls.clear()


def _common(bounds: Iterable[Bound], now_ns: int) -> tuple[int, int] | None:
    """Intersection of the bounds; None if it is empty or there are none."""
    wide = [bound.at(now_ns) for bound in bounds]
    if not wide:
        return None
    low_ns, high_ns = max(low for low, _ in wide), min(high for _, high in wide)
    return (low_ns, high_ns) if low_ns <= high_ns else None


def _narrowed(known: tuple[int, int], low_ns: int, high_ns: int) -> tuple[int, int] | None:
    low_ns, high_ns = max(known[0], low_ns), min(known[1], high_ns)
    return (low_ns, high_ns) if low_ns <= high_ns else None


def _scatter(calls: Sequence[CompletedCall], now_ns: int) -> tuple[int, int] | None:
    """Estimated range of the offset, around the median of completion differences."""
    if len(calls) < FEWEST_CALLS:
        return None
    middle = median(call.apart_ns for call in calls) or 0.0
    usual = NORMAL * (median(abs(call.apart_ns - middle) for call in calls) or 0.0)
    within = median(call.within_ns for call in calls) or 0.0
    age_ns = now_ns - (median(call.bound.at_ns for call in calls) or now_ns)
    wide = 2 * usual + within + DRIFT * max(age_ns, 0)
    return int(middle - wide), int(middle + wide)


def _is_used(kind: CallSignature | Collective, seq: int) -> bool:
    """Whether to use a call: of large groups only some, the same ones on all ranks."""
    return kind.op in NEED_ALL and seq % (kind.ranks // MANY_RANKS + 1) == 0


class _Seen:
    """A call not yet reported by all ranks: last entry, first and last completion, by host."""

    __slots__ = ("done_ns", "entered_ns", "last_ns", "ranks")

    def __init__(self) -> None:
        self.ranks: set[int] = set()
        self.entered_ns: dict[str, int] = {}
        self.done_ns: dict[str, int] = {}
        self.last_ns: dict[str, int] = {}


class Clocks:
    """Offsets of all hosts' clocks from this host's.

    Args:
        here: This host's name.
    """

    def __init__(self, here: str) -> None:
        self.here = here
        self._hosts: dict[str, HostClock] = {}
        self._open: dict[tuple[str, int, str], _Seen] = {}

    def exchange(self, host: str, sent_ns: int, there_ns: int, back_ns: int) -> None:
        """Adds a message exchange with a host's hub; see `HostClock.exchange`."""
        self._clock(host).exchange(sent_ns, there_ns, back_ns)

    def observe(self, host: str, rank: int, records: Iterable[AnyRecord]) -> None:
        """Adds the collectives among a rank's records, in times of its own host's clock."""
        for record in records:
            if isinstance(record, Calls):
                for call in unpack(record, _is_used):
                    self._call(host, rank, call)
            elif isinstance(record, Collective) and _is_used(record, record.seq):
                self._call(host, rank, record)

    def estimate(self, host: str, now_ns: int) -> Estimate | None:
        """A host's offset, None while unknown."""
        return self._clock(host).estimate(now_ns)

    def forget(self, host: str) -> None:
        """Forgets a host that restarted, and so may have another clock."""
        self._hosts.pop(host, None)
        self._open.clear()

    def _clock(self, host: str) -> HostClock:
        return self._hosts.setdefault(host, HostClock())

    def _call(self, host: str, rank: int, record: Collective) -> None:
        key = (record.group, record.seq, record.op)
        seen = self._open.get(key)
        if seen is None:
            seen = self._open[key] = _Seen()
            if len(self._open) > OPEN_CALLS:
                del self._open[next(iter(self._open))]
        seen.ranks.add(rank)
        seen.entered_ns[host] = max(seen.entered_ns.get(host, record.issued_ns), record.issued_ns)
        if record.completed_ns is not None:
            done_ns = record.completed_ns
            seen.done_ns[host] = min(seen.done_ns.get(host, done_ns), done_ns)
            seen.last_ns[host] = max(seen.last_ns.get(host, done_ns), done_ns)
        if len(seen.ranks) >= record.ranks:
            del self._open[key]
            self._on_complete(seen)

    def _on_complete(self, seen: _Seen) -> None:
        done_ns, entered_ns = seen.done_ns.get(self.here), seen.entered_ns.get(self.here)
        if done_ns is None or entered_ns is None:
            return
        spread_ns = seen.last_ns[self.here] - done_ns
        for host, done_there_ns in seen.done_ns.items():
            if host == self.here:
                continue
            bound = Bound(done_ns, entered_ns - done_there_ns, done_ns - seen.entered_ns[host])
            within_ns = max(spread_ns, seen.last_ns[host] - done_there_ns)
            self._clock(host).call(CompletedCall(bound, done_ns - done_there_ns, within_ns))
