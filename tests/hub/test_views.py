"""How often a hub creates views, and which one a viewer gets."""

from dpwatch.hub.views import CURVES_S, LEAST_S, PAUSE, WATCHED_S, Views
from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.model.view_message import ViewReader
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Tick
from dpwatch.wire.viewer_messages import SAME, VIEW_NUMBER
from tests.frames import START_NS, batch, hello, step


class Watched:
    """A run, its views and a simulated clock."""

    def __init__(self, *more):
        self.now, self.state = 100.0, RunState("run")
        self.cpu_s, self.cost_s = 0.0, 0.0
        self.views = Views(lambda: self.now, self.cpu_clock)
        self.apply(hello(1), step(0), *more)

    def cpu_clock(self):
        self.cpu_s += self.cost_s
        return self.cpu_s

    def apply(self, *records, rank=0):
        run = advance(
            self.state, batch(*records, rank=rank, seq=rank, now_ns=START_NS + 12 * 10**9)
        )
        if run is not None:
            self.views.reviewed(self.state, run)

    def ask(self, reader):
        answer = self.views.answer(self.state, [VIEW_NUMBER.pack(reader.number)])
        if answer != SAME:
            reader.read(answer[1:])
        return answer != SAME


def test_a_view_is_created_after_changes_and_not_too_often():
    it, first, second = Watched(step(118)), ViewReader(), ViewReader()
    assert it.ask(first)
    assert first.view == view(it.state)
    it.now += LEAST_S
    assert not it.ask(first)  # nothing has come
    it.apply(step(119))
    assert it.ask(first)
    it.apply(step(120))
    assert not it.ask(first)  # so soon after
    assert it.ask(second)
    assert second.view == first.view
    it.now += LEAST_S
    assert it.ask(second)
    assert second.view.run == summarize(it.state)
    assert second.view.history == first.view.history  # which looks the same so soon
    it.apply(step(121))
    it.now += CURVES_S
    assert it.ask(second)
    assert second.view == view(it.state)


def test_an_expensive_view_is_made_seldom():
    it, reader = Watched(), ViewReader()
    it.cost_s = 0.1
    it.ask(reader)
    it.apply(step(1))
    it.now += 10 * LEAST_S
    assert not it.ask(reader)
    it.now += 3 * PAUSE * it.cost_s
    assert it.ask(reader)


def test_a_view_after_a_review_is_shown_at_once():
    it, reader = Watched(), ViewReader()
    it.ask(reader)
    it.apply(step(1))
    it.apply(Tick(), rank=-1)
    assert it.ask(reader)
    assert reader.view.run.steps == 2


def test_a_viewer_counts_as_connected_for_a_while():
    it = Watched()
    assert not it.views.is_watched
    it.ask(ViewReader())
    assert it.views.is_watched
    it.now += WATCHED_S
    assert not it.views.is_watched


def test_a_replaced_state_is_sent_as_a_complete_view():
    it, reader = Watched(), ViewReader()
    it.apply(*(step(i) for i in range(1, 9)))
    it.ask(reader)
    it.state = RunState("run")
    it.apply(hello(1), step(0))
    it.views.forget()
    assert it.ask(reader)
    assert reader.view == view(it.state)


def test_an_invalid_view_number_gets_a_complete_view():
    it, reader = Watched(), ViewReader()
    for asked in ([], [b"x"], [VIEW_NUMBER.pack(12345)], [bytes(8), b"more"]):
        reader.read(it.views.answer(it.state, asked)[1:])
        assert reader.view == view(it.state)
