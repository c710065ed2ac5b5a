"""Steps kept in order as they come: as if they were sorted anew each time."""

from __future__ import annotations

import random

import pytest

from dpwatch.run.derive.timeline import exposed_share
from dpwatch.run.state.series import NONE, STEP_COLUMNS, WINDOW, Window
from dpwatch.run.state.sorted_window import FEW, PHASE_FIELDS, Ordered
from dpwatch.wire.messages import Step


def some_step(dice, number):
    def maybe(most):
        return None if dice.random() < 0.2 else dice.randrange(most)

    start = number * 1000
    end = start + dice.randrange(900)
    times = (maybe(5) for _ in range(10))
    return Step(0, number, start, end, *times, 1.5, maybe(9), maybe(7))


@pytest.mark.parametrize("seed", range(4))
def test_it_follows_a_window_as_it_goes_on(seed):
    dice, window, kept = random.Random(seed), Window(), Ordered()
    number = 0
    for _ in range(3 * WINDOW):
        for _ in range(dice.choice((0, 1, 1, 2, FEW, FEW + 1, WINDOW + 3))):
            window.push(some_step(dice, number))
            number += 1
        kept.follow(window)
        rows = window.latest(WINDOW)
        assert kept.took_ns == sorted(row[2] - row[1] for row in rows)
        for name, values in zip(PHASE_FIELDS, kept.fields, strict=True):
            place = STEP_COLUMNS.index(name)
            assert values == sorted(row[place] for row in rows if row[place] != NONE)
        fresh = Ordered()
        fresh.follow(window)
        assert kept.shares == fresh.shares
        assert kept.samples_per_s == fresh.samples_per_s
        assert kept.means_ms == fresh.means_ms
        assert kept.exposed_share == fresh.exposed_share == exposed_share(window.steps(0))
        assert kept.last_ns == fresh.last_ns


def test_steps_asked_for_again_are_the_same_and_none_is_missing():
    dice, window = random.Random(1), Window()
    before = ()
    for number in range(2 * WINDOW):
        window.push(some_step(dice, number))
        if dice.random() < 0.4:
            now = window.newest(0, 24)
            assert list(now) == window.steps(0, 24)
            assert {id(step) for step in now} >= {id(s) for s in before if s.step >= now[0].step}
            before = now


def test_what_is_derived_of_a_window_is_no_part_of_it():
    first, second = Window(), Window()
    for window in (first, second):
        window.push(some_step(random.Random(1), 0))
    first.newest(0, 24)
    assert first == second
