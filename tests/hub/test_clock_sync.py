"""Offsets of synthetic clocks with known truth never deviate by more than the reported error."""

import random

import pytest

from dpwatch.hub.cluster.clock_sync import Clocks
from dpwatch.wire.messages import Collective

MS = 1_000_000
S = 1_000 * MS
TRUE_NS = 987 * S + 654_321
"""How far this host's clock is ahead of the other one's."""


class Pair:
    """This host and another one, whose clock runs faster by `drift`."""

    def __init__(self, seed, drift=0.0, offset_ns=TRUE_NS):
        self.random = random.Random(seed)
        self.drift, self.offset_ns = drift, offset_ns
        self.now_ns = 1000 * S
        self.clocks = Clocks("here")
        self.seq = 0

    def there(self, at_ns):
        return int(at_ns - self.true_offset(at_ns))

    def true_offset(self, at_ns):
        return int(self.offset_ns - self.drift * (at_ns - 1000 * S))

    def exchange(self, out_ms, back_ms):
        stamped = self.now_ns + int(out_ms * MS)
        back = stamped + int(back_ms * MS)
        self.clocks.exchange("there", self.now_ns, self.there(stamped), back)
        self.now_ns = back

    def call(self, scatter_ms=0.05, late_ms=0.0, op="all_reduce", completed=True):
        """Adds an all-reduce of two ranks per host; completions are up to `scatter_ms` late."""
        entries = [self.now_ns + self.random.randrange(5 * MS) for _ in range(4)]
        over = max(entries) + 2 * MS
        for rank, entered in enumerate(entries):
            here = rank < 2
            done = over + int(self.random.expovariate(1 / (scatter_ms * MS)))
            done += 0 if here else int(late_ms * MS)
            times = [entered, done] if here else [self.there(entered), self.there(done)]
            record = Collective(0, op, "default", 4, self.seq, 8, times[0])
            if completed:
                record = Collective(0, op, "default", 4, self.seq, 8, *times)
            self.clocks.observe("here" if here else "there", rank, [record])
        self.seq += 1
        self.now_ns = over + 20 * MS

    def estimate(self):
        return self.clocks.estimate("there", self.now_ns)

    def off_by(self):
        estimate = self.estimate()
        return abs(estimate.offset_ns - self.true_offset(self.now_ns)), estimate


def test_there_is_no_estimate_at_first():
    assert Pair(0).estimate() is None


@pytest.mark.parametrize(("out_ms", "back_ms"), [(1, 1), (5, 0.1), (0.1, 5)])
def test_one_exchange_has_an_error_of_half_its_round_trip(out_ms, back_ms):
    pair = Pair(0)
    pair.exchange(out_ms, back_ms)
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns <= (out_ms + back_ms) / 2 * MS + 1
    assert estimate.source == "exchange"


def test_bounds_of_several_exchanges_combine():
    pair = Pair(0)
    pair.exchange(0.1, 20)
    pair.exchange(20, 0.1)
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns < 0.2 * MS


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("drift", [0.0, 40e-6, -40e-6])
def test_collectives_narrow_the_error_and_it_still_holds(seed, drift):
    pair = Pair(seed, drift)
    for _ in range(30):
        pair.exchange(2 + 10 * pair.random.random(), 2 + 10 * pair.random.random())
        for _ in range(10):
            pair.call()
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns
    assert estimate.source == "collectives"
    assert estimate.error_ns < 1 * MS


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("late_ms", [-0.15, 0.15])
def test_the_error_covers_a_host_that_always_completes_later(seed, late_ms):
    """Its lateness is within the spread of completions of one host's ranks, on one clock."""
    pair = Pair(seed)
    for _ in range(10):
        pair.exchange(5, 5)
        for _ in range(10):
            pair.call(scatter_ms=0.2, late_ms=late_ms)
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns
    assert estimate.source == "collectives"


def test_without_completions_exchanges_are_used():
    pair = Pair(1)
    for _ in range(5):
        pair.exchange(1, 1)
        pair.call(completed=False)
    assert pair.estimate().source == "exchange"


def test_ops_that_do_not_need_every_rank_are_ignored():
    pair = Pair(1)
    for _ in range(50):
        pair.call(op="broadcast")
    assert pair.estimate() is None


def test_completions_that_contradict_exchanges_are_ignored():
    pair = Pair(2)
    pair.exchange(0.1, 0.1)
    for _ in range(50):
        pair.call(late_ms=300)  # as if that host's callbacks were always so late
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns
    assert estimate.source == "exchange"


def test_calls_that_ranks_number_differently_are_ignored():
    pair = Pair(3)
    pair.exchange(1, 1)
    for shift in range(20):
        records = [Collective(0, "all_reduce", "default", 4, shift, 8, t, t + 1) for t in (1, 2)]
        for rank in range(4):
            pair.clocks.observe("here" if rank < 2 else "there", rank, [records[rank // 2]])
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns <= 2 * MS


def test_a_clock_that_jumped_is_followed():
    pair = Pair(4)
    for _ in range(10):
        pair.exchange(1, 1)
        pair.call()
    pair.offset_ns += 5 * S
    pair.exchange(1, 1)
    off, estimate = pair.off_by()
    assert off <= estimate.error_ns < 2 * MS


def test_the_offset_in_use_stays_stable():
    pair = Pair(5)
    used = set()
    for _ in range(100):
        pair.exchange(1 + pair.random.random(), 1 + pair.random.random())
        used.add(pair.estimate().offset_ns)
    assert len(used) < 20


def test_old_observations_widen_the_error():
    pair = Pair(6, drift=80e-6)
    pair.exchange(0.1, 0.1)
    pair.now_ns += 60 * S
    off, estimate = pair.off_by()
    assert 4 * MS < off <= estimate.error_ns < 7 * MS
