"""What a viewer shows of a state: figures of now, curves of a moment ago."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.model.snapshot import History
from dpwatch.run.state.apply import apply
from dpwatch.runtime.paths import RunDir
from dpwatch.viewer.follow import CURVES_S, INTERVAL_S, Follower
from dpwatch.wire.messages import Bye
from tests.frames import batch, hello, played, step


@pytest.fixture
def follower():
    """As much of one as looks at a state; its clock stands until it is set."""
    at = SimpleNamespace(now=100.0, _view=None, _look=None, complete=True, connection="live")
    at._view_ends, at._reviewed, at._curves = math.inf, None, (-CURVES_S, History())
    at.place = RunDir(Path("run"))
    at._clock = lambda: at.now
    at._just_reviewed = lambda now: Follower._just_reviewed(at, now)
    at._viewed = lambda state, connection: Follower._viewed(at, state, connection)

    def look(state, connection="live", *, fresh=True):
        at.state, at.connection = state, connection
        at._view = None if fresh else at._view
        return Follower.view(at)

    at.look = look
    return at


@pytest.fixture
def state():
    return played([batch(hello(1)), batch(*(step(i) for i in range(5)), seq=1)])


def test_curves_of_a_running_run_are_a_second_old_at_most(follower, state):
    first = follower.look(state)
    assert first == view(state)
    apply(state, batch(step(5), seq=2))
    follower.now += 0.9 * CURVES_S
    second = follower.look(state)
    assert second.history is first.history
    assert second.run == summarize(state) != first.run
    follower.now += 0.1 * CURVES_S
    assert follower.look(state) == view(state)


@pytest.mark.parametrize("connection", ["stale", "closed"])
def test_what_will_not_go_on_is_shown_whole(follower, state, connection):
    follower.look(state)
    apply(state, batch(step(5), seq=2))
    assert follower.look(state, connection) == view(state, connection)


def test_an_ended_run_is_shown_whole(follower, state):
    follower.look(state)
    apply(state, batch(step(5), Bye("finished", ""), seq=2))
    found = follower.look(state)
    assert found.run.state == "finished"
    assert found == view(state)


def test_a_reviews_summary_is_good_for_one_look_though_nothing_comes(follower, state):
    reviewed = summarize(state)
    follower._reviewed = (follower.now, reviewed)
    apply(state, batch(step(5), seq=2))
    assert follower.look(state).run is reviewed
    assert follower.look(state, fresh=False).run == summarize(state)
    assert follower.look(state, fresh=False) is follower.look(state, fresh=False)


def test_a_review_of_a_while_ago_is_not_shown(follower, state):
    follower._reviewed = (follower.now, summarize(state))
    apply(state, batch(step(5), seq=2))
    follower.now += 2 * INTERVAL_S
    assert follower.look(state).run == summarize(state)


def test_curves_catch_up_though_nothing_comes(follower, state):
    follower.look(state)
    apply(state, batch(step(5), seq=2))
    follower.now += 0.5 * CURVES_S
    follower.look(state)
    follower.now += 0.5 * CURVES_S
    assert follower.look(state, fresh=False) == view(state)
