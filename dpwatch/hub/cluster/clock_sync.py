"""How the monotonic clocks of a run's hosts stand to this host's: estimated, with an error. Pure.

An offset is what is added to another host's time to have this one's. Two things bound it surely,
since nothing arrives before it was sent:

- an exchange of messages: sent here, stamped there, back here. `sent <= there + offset <= back`;
- a collective that needs every rank: none is over before the last has entered it.

And one more narrows it: ranks on all hosts are done with such a call at about the same time, so
the median difference of their completions is close. How close is told by how far these scatter, and
by how far ranks of one host, on one clock, are done apart: so much one host may always be later.
Clocks also run at rates of their own, so what is old counts for less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from dpwatch.quantiles import median
from dpwatch.wire.calls import CallSignature, unpack
from dpwatch.wire.messages import AnyRecord, Calls, Collective

DRIFT = 100e-6
"""How much faster one host's clock may run than another's."""

EXCHANGES, CALLS = 32, 32
FEWEST_CALLS = 16
"""Completions that say something of how they scatter."""

RECENT_NS = 20_000_000_000
OPEN_CALLS = 512
MANY_RANKS = 64
NORMAL = 1.4826
"""Standard deviations to a median of absolute deviations."""

NEED_ALL = frozenset({"all_reduce", "barrier", "all_gather", "reduce_scatter"})
"""Ops that are over on no rank before every rank has entered them."""


class Estimate(msgspec.Struct, frozen=True):
    """What to add to a host's times, by how much that may be wrong, and how it is known.

    `source` is `collectives` where these narrowed it down, else `exchange` of messages.
    """

    offset_ns: int
    error_ns: int
    source: str


class Bound(msgspec.Struct, frozen=True, array_like=True):
    """At that moment (of this host's clock) the offset lay between these."""

    at_ns: int
    low_ns: int
    high_ns: int

    def by(self, now_ns: int) -> tuple[int, int]:
        """The same, as much wider as the clocks may have drifted since."""
        drift_ns = int(DRIFT * abs(now_ns - self.at_ns))
        return self.low_ns - drift_ns, self.high_ns + drift_ns


class Done(msgspec.Struct, frozen=True, array_like=True):
    """A collective that is over on both hosts.

    Attributes:
        bound: What it proves of the offset.
        apart_ns: Its first completion here less that there.
        within_ns: How far ranks of one host were done apart, the wider of the two.
    """

    bound: Bound
    apart_ns: int
    within_ns: int


class HostClock:
    """One other host's clock."""

    def __init__(self) -> None:
        self._exchanges: deque[Bound] = deque(maxlen=EXCHANGES)
        self._calls: deque[Done] = deque(maxlen=CALLS)
        self._used_ns: int | None = None

    def exchange(self, sent_ns: int, there_ns: int, back_ns: int) -> None:
        """A message left here, was stamped there, and its answer came back."""
        if back_ns >= sent_ns:
            self._exchanges.append(Bound(back_ns, sent_ns - there_ns, back_ns - there_ns))

    def call(self, done: Done) -> None:
        """A collective is over on both hosts."""
        if done.bound.low_ns <= done.bound.high_ns:
            self._calls.append(done)

    def estimate(self, now_ns: int) -> Estimate | None:
        """The offset now; it stays what it was as long as that is well within what is possible."""
        self._forget_contradicted(now_ns)
        sure = _common(self._exchanges, now_ns)
        exchanged = sure
        calls = [call for call in self._calls if now_ns - call.bound.at_ns <= RECENT_NS]
        for call in calls:
            low_ns, high_ns = call.bound.by(now_ns)
            tried = (low_ns, high_ns) if sure is None else _narrowed(sure, low_ns, high_ns)
            sure = tried or sure  # ranks may have counted a call differently: that proves nothing
        if sure is None:
            return None
        close = _scatter(calls, now_ns)
        if close is not None and close[1] - close[0] < sure[1] - sure[0]:
            sure = _narrowed(sure, *close) or sure
        return self._settle(*sure, "exchange" if sure == exchanged else "collectives")

    def _settle(self, low_ns: int, high_ns: int, source: str) -> Estimate:
        middle_ns, half_ns = (low_ns + high_ns) // 2, (high_ns - low_ns + 1) // 2
        if self._used_ns is None or abs(self._used_ns - middle_ns) > half_ns // 2:
            self._used_ns = middle_ns
        return Estimate(self._used_ns, half_ns + abs(self._used_ns - middle_ns), source)

    def _forget_contradicted(self, now_ns: int) -> None:
        """Exchanges that can't be true together: a clock has jumped, and the newer are right."""
        while len(self._exchanges) > 1 and _common(self._exchanges, now_ns) is None:
            self._exchanges.popleft()
            self._calls.clear()


def _common(bounds: Iterable[Bound], now_ns: int) -> tuple[int, int] | None:
    """What lies within all of them; None if nothing does, or there are none."""
    wide = [bound.by(now_ns) for bound in bounds]
    if not wide:
        return None
    low_ns, high_ns = max(low for low, _ in wide), min(high for _, high in wide)
    return (low_ns, high_ns) if low_ns <= high_ns else None


def _narrowed(known: tuple[int, int], low_ns: int, high_ns: int) -> tuple[int, int] | None:
    low_ns, high_ns = max(known[0], low_ns), min(known[1], high_ns)
    return (low_ns, high_ns) if low_ns <= high_ns else None


def _scatter(calls: Sequence[Done], now_ns: int) -> tuple[int, int] | None:
    """About the median of completions apart."""
    if len(calls) < FEWEST_CALLS:
        return None
    middle = median(call.apart_ns for call in calls) or 0.0
    usual = NORMAL * (median(abs(call.apart_ns - middle) for call in calls) or 0.0)
    within = median(call.within_ns for call in calls) or 0.0
    age_ns = now_ns - (median(call.bound.at_ns for call in calls) or now_ns)
    wide = 2 * usual + within + DRIFT * max(age_ns, 0)
    return int(middle - wide), int(middle + wide)


def _tells(kind: CallSignature | Collective, seq: int) -> bool:
    """Of large groups a part of the calls is enough, the same on all ranks."""
    return kind.op in NEED_ALL and seq % (kind.ranks // MANY_RANKS + 1) == 0


class _Seen:
    """A call that not every rank has told of: by host, its last entry, first and last end."""

    __slots__ = ("done_ns", "entered_ns", "last_ns", "ranks")

    def __init__(self) -> None:
        self.ranks: set[int] = set()
        self.entered_ns: dict[str, int] = {}
        self.done_ns: dict[str, int] = {}
        self.last_ns: dict[str, int] = {}


class Clocks:
    """All hosts' clocks against this one's.

    Args:
        here: This host's name.
    """

    def __init__(self, here: str) -> None:
        self.here = here
        self._hosts: dict[str, HostClock] = {}
        self._open: dict[tuple[str, int, str], _Seen] = {}

    def exchange(self, host: str, sent_ns: int, there_ns: int, back_ns: int) -> None:
        """A message to that host's hub and its answer."""
        self._clock(host).exchange(sent_ns, there_ns, back_ns)

    def hear(self, host: str, rank: int, records: Iterable[AnyRecord]) -> None:
        """What a rank on that host sent, in the times of its own clock."""
        for record in records:
            if isinstance(record, Calls):
                for call in unpack(record, _tells):
                    self._call(host, rank, call)
            elif isinstance(record, Collective) and _tells(record, record.seq):
                self._call(host, rank, record)

    def estimate(self, host: str, now_ns: int) -> Estimate | None:
        """That host's offset; None while nothing is known of it."""
        return self._clock(host).estimate(now_ns)

    def forget(self, host: str) -> None:
        """That host may have another clock now: it was started anew."""
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
            self._whole(seen)

    def _whole(self, seen: _Seen) -> None:
        done_ns, entered_ns = seen.done_ns.get(self.here), seen.entered_ns.get(self.here)
        if done_ns is None or entered_ns is None:
            return
        spread_ns = seen.last_ns[self.here] - done_ns
        for host, done_there_ns in seen.done_ns.items():
            if host == self.here:
                continue
            bound = Bound(done_ns, entered_ns - done_there_ns, done_ns - seen.entered_ns[host])
            within_ns = max(spread_ns, seen.last_ns[host] - done_there_ns)
            self._clock(host).call(Done(bound, done_ns - done_there_ns, within_ns))
