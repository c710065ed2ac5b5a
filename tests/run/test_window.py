"""The window of a lane's last steps."""

from __future__ import annotations

import random

from dpwatch.run.state.series import WINDOW, Window
from dpwatch.wire.messages import Step


def some_step(dice, number):
    def maybe(most):
        return None if dice.random() < 0.2 else dice.randrange(most)

    start = number * 1000
    end = start + dice.randrange(900)
    times = (maybe(5) for _ in range(10))
    return Step(0, number, start, end, *times, 1.5, maybe(9), maybe(7))


def test_newest_steps_are_the_same_objects_and_complete():
    dice, window = random.Random(1), Window()
    before = ()
    for number in range(2 * WINDOW):
        window.push(some_step(dice, number))
        if dice.random() < 0.4:
            now = window.newest(0, 24)
            assert list(now) == window.steps(0, 24)
            assert {id(step) for step in now} >= {id(s) for s in before if s.step >= now[0].step}
            before = now


def test_a_windows_cache_is_not_encoded():
    first, second = Window(), Window()
    for window in (first, second):
        window.push(some_step(random.Random(1), 0))
    first.newest(0, 24)
    assert first == second
