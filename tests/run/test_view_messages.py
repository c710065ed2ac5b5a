"""Views that a viewer assembles from changes equal views of the state."""

import random

import pytest

from dpwatch.run.derive import view_messages
from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.derive.view_messages import LEAST_POINTS, POINTS, ViewWriter
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.model.snapshot import LANE_STEPS
from dpwatch.run.model.view_message import ViewReader
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import HUB_RANK, Asked, Line, Output, Stacks, ThreadStack
from tests.frames import START_NS, batch, collective, ddp_run, hello, memory, played, step


def frames_of(dice):
    """Three ranks that step, print, use memory, restart and are asked for stacks."""
    steps, pids = [0, 0, 0], [1000, 1001, 1002]
    for r in range(3):
        yield batch(hello(3), rank=r)
    for number in range(400):
        r = dice.randrange(3)
        i, now_ns = steps[r], START_NS + number * 10_000_000
        records = [step(i + k, loss=dice.random()) for k in range(dice.choice([1, 1, 2, 40]))]
        steps[r] += len(records)
        records += [collective(i, i, nbytes=8, ranks=3, at_ms=100 * i), memory(i, 100 + number)]
        if dice.random() < 0.3:
            lines = [Line(number, f"line {k} of {number}") for k in range(dice.choice([0, 1, 250]))]
            writing = dice.choice([None, Line(number, "50 %")])
            records.append(Output("out", lines, dice.randrange(2), writing))
        if dice.random() < 0.05:
            yield batch(Asked(number, []), rank=HUB_RANK, seq=-1, now_ns=now_ns)
            threads = [ThreadStack("MainThread", True, 1, ["a.py:1 main"], 0)]
            records.append(Stacks(number, now_ns, threads))
        if dice.random() < 0.02:
            steps[r], pids[r] = 0, pids[r] + 5000
        yield batch(*records, rank=r, pid=pids[r], seq=number, now_ns=now_ns)


@pytest.mark.parametrize("seed", range(8))
def test_changes_reproduce_the_view_whatever_answers_are_lost(seed):
    dice = random.Random(seed)
    state, writer = RunState("run"), ViewWriter(1000 * seed)
    readers = [ViewReader(), ViewReader()]
    for frame in frames_of(dice):
        advance(state, frame)
        if dice.random() < 0.3:
            writer.update(state, summarize(state), curves=True)
            shown = view(state)
            for reader in readers:
                answer = writer.message(reader.number)
                if dice.random() < 0.8:  # else it is lost
                    reader.read(answer)
                    assert reader.view == shown
    assert any(reader.view.output and reader.view.stacks for reader in readers)


def test_an_answer_that_arrives_out_of_order_is_ignored():
    state, writer, reader = played(ddp_run(steps=5)), ViewWriter(0), ViewReader()
    writer.update(state, summarize(state), curves=True)
    reader.read(writer.message(0))
    advance(state, batch(step(5), seq=9))
    writer.update(state, summarize(state), curves=True)
    late = writer.message(reader.number)
    reader.read(late)
    newest = reader.view
    reader.read(late)
    assert reader.view is newest


def test_unchanged_parts_are_the_same_objects():
    state, writer, reader = played(ddp_run(steps=50, ranks=2)), ViewWriter(0), ViewReader()
    for curves in (True, False):
        advance(state, batch(step(50 + curves), Output("out", [Line(1, "x")]), seq=9 + curves))
        before = reader.view
        writer.update(state, summarize(state), curves=curves)
        reader.read(writer.message(reader.number))
    assert reader.view.history is before.history
    assert reader.view.lanes[1] is before.lanes[1]  # the other rank has done nothing
    assert reader.view.lanes[0].steps[:-1] == before.lanes[0].steps[1:]
    assert reader.view.lanes[0].steps[0] is before.lanes[0].steps[1]
    assert len(reader.view.lanes[0].steps) == LANE_STEPS


def test_only_changes_are_sent(monkeypatch):
    """A second of two ranks' steps takes a fraction of the complete view."""
    state, writer, reader = played(ddp_run(steps=400, ranks=2)), ViewWriter(0), ViewReader()
    writer.update(state, summarize(state), curves=True)
    whole = writer.message(0)
    reader.read(whole)
    for r in range(2):
        advance(state, batch(step(400), rank=r, seq=401))
    writer.update(state, summarize(state), curves=True)
    assert len(writer.message(reader.number)) < len(whole) / 4


def test_curves_of_many_rows_have_fewer_points(monkeypatch):
    state = played(ddp_run(steps=300, ranks=4))
    all_points = view(state).history.rank_step_ms
    monkeypatch.setattr(view_messages, "ALL_POINTS", POINTS)
    few = view_messages.curves_of(state).rank_step_ms
    for (steps, values), whole in zip(few, all_points, strict=True):
        assert LEAST_POINTS / 2 < len(steps) <= POINTS / 4
        points = set(zip(steps, values, strict=True))
        assert points <= set(zip(whole.steps, whole.values, strict=True))
        assert (min(values), max(values)) == (min(whole.values), max(whole.values))
