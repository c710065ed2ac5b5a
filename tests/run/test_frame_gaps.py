"""Gaps in frame numbers, compared with sets."""

import random

import pytest

from dpwatch.run.state.frame_gaps import MOST_SPANS, ReceivedFrames


def missing(came):
    return max(came) + 1 - len(came) if came else 0


def of(numbers):
    received = ReceivedFrames()
    for number in numbers:
        received.add(number)
    return received


def test_consecutive_frames_have_no_gaps():
    assert ReceivedFrames().missing == 0
    assert of(range(100)).missing == 0
    assert of(range(100)).spans == [(0, 99)]


def test_frames_before_the_first_count_as_missing():
    assert of([5, 6]).missing == 5


@pytest.mark.parametrize("seed", range(20))
def test_merging_parts_gives_their_union(seed):
    rng = random.Random(seed)
    parts = [{n for n in range(30) if rng.random() < 0.6} for _ in range(3)]
    known = ReceivedFrames()
    for part in [*parts, *parts]:  # a second time changes nothing
        known.merge(of(rng.sample(sorted(part), len(part))))
    assert known.missing == missing(set().union(*parts))


def test_many_gaps_are_kept_as_a_sum():
    came = range(0, 2000, 3)
    received = of(came)
    assert len(received.spans) <= MOST_SPANS
    assert received.missing == missing(set(came))
