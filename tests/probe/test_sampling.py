"""Which steps are sampled: evenly distributed, whatever a script does periodically."""

import pytest

from dpwatch.probe.steps.sampling import BLOCK, is_second, next_pair, pair_of


def pairs(doublings, count=400):
    """The first pairs."""
    found = [next_pair(0, doublings)]
    while len(found) < count:
        found.append(next_pair(found[-1] + 2, doublings))
    return found


@pytest.mark.parametrize("doublings", range(9))
def test_one_block_in_2_to_the_n_has_a_pair(doublings):
    groups = [first // (BLOCK << doublings) for first in pairs(doublings)]
    assert len(set(groups)) == len(groups) == 400
    # Where a pair ends with the first step of the next block, that may do without.
    assert groups[-1] <= 399 * 1.03
    assert all(first == pair_of(first // BLOCK) for first in pairs(doublings))


@pytest.mark.parametrize("doublings", range(9))
@pytest.mark.parametrize("every", [2, 5, 10, 20, 50, 100])
def test_periodic_events_are_sampled_at_their_true_rate(every, doublings):
    looked_at = [step for first in pairs(doublings, 2000) for step in (first, first + 1)]
    for at in {0, every - 1}:
        share = sum(step % every == at for step in looked_at) / len(looked_at)
        assert share == pytest.approx(1 / every, rel=0.35)


def test_ranks_with_different_intervals_share_sampled_steps():
    for doublings in range(8):
        slow, fast = set(pairs(doublings + 1, 50)), set(pairs(doublings, 110))
        assert len(slow - fast) <= 1


@pytest.mark.parametrize("step", [0, 1, 7, 8, 9, 10, 11, 123, 4567])
@pytest.mark.parametrize("doublings", [0, 1, 4])
def test_the_next_pair_is_the_first_that_does_not_begin_before(step, doublings):
    every = {next_pair(at, doublings) for at in range(2 * step + (BLOCK << doublings))}
    assert next_pair(step, doublings) == min(first for first in every if first >= step)


def test_the_second_of_a_pair_is_determined_by_its_number():
    seconds = {pair_of(block) + 1 for block in range(50)}
    assert {step for step in range(501) if is_second(step)} == seconds
