"""How often steps are sampled, given the cost."""

import pytest

from dpwatch.probe.memory.pace import MIN_INTERVAL, DirectPace, Pace
from dpwatch.probe.steps import sampling

MS = 1_000_000


class Clock:
    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns


def train(pace, clock, *, steps, step_ms=20.0, extra_ms=0.0, work_ms=0.0, can_sample=True):
    """Runs steps that take the given times; returns the sampled ones."""
    sampled = []
    due = False
    for step in range(steps):
        pace.begin()
        is_sampled = due and can_sample
        if due:
            pace.missed = not can_sample
        clock.now_ns += int((step_ms + (extra_ms if is_sampled else 0)) * MS)
        pace.end()
        due = pace.due(step + 1)
        if is_sampled or due:
            clock.now_ns += int(work_ms * MS)
        pace.close(sampled=is_sampled, prepared=due)
        if is_sampled:
            sampled.append(step)
    return sampled


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(clock)


def test_cheap_sampling_stays_at_every_tenth_step(pace, clock):
    assert train(pace, clock, steps=45, extra_ms=0.5) == [1, 2, 10, 20, 30, 40]
    assert pace.cost_share() == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("step_ms", "extra_ms", "work_ms"), [(20, 4, 0.5), (1, 1.5, 0.2), (260, 10, 1)]
)
def test_the_mean_cost_stays_below_one_percent(pace, clock, step_ms, extra_ms, work_ms):
    steps = 6000
    train(pace, clock, steps=steps, step_ms=step_ms, extra_ms=extra_ms, work_ms=work_ms)
    plain_ns = steps * step_ms * MS
    assert (clock.now_ns - plain_ns) / plain_ns < 0.01


def test_costly_first_samples_delay_the_next(pace, clock):
    assert train(pace, clock, steps=200, extra_ms=10) == [1, 2, 80, 160]


def test_ranks_of_different_cost_share_their_sampled_steps():
    samples = []
    for extra_ms in (1.0, 4.0, 9.0):
        clock = Clock()
        samples.append(set(train(Pace(clock), clock, steps=700, extra_ms=extra_ms)))
    cheap, dear, dearest = samples
    assert dearest < dear < cheap


def test_a_missed_sample_is_made_up_for(pace, clock):
    assert train(pace, clock, steps=10, can_sample=False) == []
    assert pace.due(11)
    assert train(pace, clock, steps=13)[0] == 1


def test_a_cost_that_falls_brings_sampling_back(pace, clock):
    train(pace, clock, steps=400, extra_ms=10)
    slow = pace.interval
    train(pace, clock, steps=40 * slow, extra_ms=0.1)
    assert slow > MIN_INTERVAL
    assert pace.interval == MIN_INTERVAL


# -- measured directly -------------------------------------------------------------------------


def walk(clock, *, steps, step_ms=20.0, walk_ms=0.1, first=0):
    """Runs steps under a `DirectPace`; returns the sampled ones."""
    pace, sampled = DirectPace(clock), []
    for step in range(first, first + steps):
        due = pace.due(step)
        clock.now_ns += int(step_ms * MS)
        if due:
            clock.now_ns += int(walk_ms * MS)
            pace.spent(step, int(walk_ms * MS))
            sampled.append(step)
    return sampled


def test_cheap_walks_are_made_in_every_block_of_ten(clock):
    sampled = walk(clock, steps=100)
    assert sampled[:2] == [1, 2]
    assert all(sampling.is_second(step) for step in sampled[2:])
    assert len(sampled) >= 10


@pytest.mark.parametrize("step_ms", [0.5, 5, 100])
@pytest.mark.parametrize("walk_ms", [0.05, 1, 60])
def test_walks_never_take_more_than_their_share(clock, step_ms, walk_ms):
    """Whatever a walk costs, except for the first one, whose cost is not known before."""
    steps = 20_000
    sampled = walk(clock, steps=steps, step_ms=step_ms, walk_ms=walk_ms)
    assert sampled[0] == 1
    assert walk_ms * (len(sampled) - 1) <= 0.005 * steps * step_ms
    if walk_ms < 0.0005 * steps * step_ms:
        assert len(sampled) > 2


def test_ranks_of_different_cost_walk_in_the_same_steps():
    cheap, dear, dearest = (
        set(walk(Clock(), steps=5000, walk_ms=walk_ms)) - {2} for walk_ms in (0.5, 2, 9)
    )
    assert dearest < dear < cheap


def test_a_late_start_samples_at_once(clock):
    assert walk(clock, steps=30, first=1000)[0] == 1000
