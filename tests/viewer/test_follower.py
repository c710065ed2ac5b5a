"""How a viewer handles its hub's answers, and missing ones."""

import pytest
import zmq

from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.derive.view_messages import ViewWriter
from dpwatch.run.state.apply import apply
from dpwatch.run.state.encoding import encode
from dpwatch.runtime import paths
from dpwatch.viewer.follower import ASK_AGAIN_S, STALE_S, Follower
from dpwatch.wire import transport
from dpwatch.wire.messages import Bye, Command
from dpwatch.wire.viewer_messages import SAME, STATE, STATE_REQUEST, VIEW, VIEW_REQUEST
from tests.frames import batch, hello, played, step


class Asked:
    """A follower, its clock, and the requests that a hub would receive."""

    def __init__(self, **options):
        self.now = 100.0
        self.context = zmq.Context()
        place = paths.run_dir("run")
        self.hub = transport.answer_socket(self.context, place.ask)
        self.follower = Follower(self.context, place, 1, clock=lambda: self.now, **options)
        self.writer = ViewWriter(7)

    def questions(self, most_ms=0):
        found = []
        while self.hub.poll(most_ms):
            found.append(self.hub.recv_multipart()[1:])
        return found

    def answer(self, state):
        self.writer.update(state, summarize(state), curves=True)
        self.follower._take_answer(VIEW + self.writer.message(self.follower._reader.number))

    def close(self):
        self.follower.close()
        self.hub.close()
        self.context.term()


@pytest.fixture
def asked():
    made = []

    def make(**options):
        made.append(Asked(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def state():
    return played([batch(hello(1)), batch(*(step(i) for i in range(5)), seq=1)])


def test_a_request_is_sent_once_until_answered_or_lost(asked, state):
    it = asked()
    it.follower.ask()
    it.follower.ask()
    (question,) = it.questions(2000)
    assert question[0] == VIEW_REQUEST
    it.now += 1.1 * ASK_AGAIN_S
    it.follower.ask()
    assert len(it.questions(2000)) == 1
    it.answer(state)
    assert not it.follower.is_waiting
    it.follower.ask()
    assert len(it.questions(2000)) == 1


def test_a_hub_that_does_not_answer_is_stale(asked, state):
    it = asked()
    it.answer(state)
    first = it.follower.view()
    assert first == view(state)
    assert it.follower.view() is first
    it.now += 1.1 * STALE_S
    assert it.follower.view().connection == "stale"
    it.follower._take_answer(SAME)
    assert it.follower.view() == first


def test_a_run_without_ranks_is_not_shown(asked):
    it = asked()
    it.answer(played([]))
    assert it.follower.complete
    assert it.follower.view() is None


def test_a_finished_run_still_shows_how_the_command_ended(asked, state):
    """The follower disconnects from the hub, so that it can end."""
    it = asked(keeps_end=True)
    apply(state, batch(Bye("finished", exit=0), seq=2))
    it.answer(state)
    assert not it.follower.is_done
    it.follower.ask()
    assert [STATE_REQUEST] in it.questions(2000)
    it.follower._take_answer(STATE + encode(state))
    assert it.follower.is_done
    it.follower.close()
    it.follower.report_command(Command(exit=3))
    run = it.follower.view().run
    assert (run.state, run.command_exit) == ("finished", 3)
    assert "exit code 3 afterwards" in run.note
    assert it.follower.view().connection == "closed"


def test_a_command_s_end_is_shown_though_the_hub_answers_too_late(asked, state):
    it = asked(keeps_end=True)
    apply(state, batch(Bye("finished", exit=0), seq=2))
    it.answer(state)
    it.follower._take_answer(STATE + encode(state))
    it.follower.report_command(Command(exit=3))
    assert it.follower.view().run.command_exit is None
    it.follower.close()
    run = it.follower.view().run
    assert run.command_exit == 3
    assert "exit code 3 afterwards" in run.note


def test_invalid_answers_are_discarded(asked, state):
    it = asked()
    it.answer(state)
    it.follower._take_answer(VIEW + b"\xc1")
    assert it.follower.view() is None
    assert it.follower.error
    it.answer(state)
    assert it.follower.view() == view(state)
    assert it.follower.error == ""
