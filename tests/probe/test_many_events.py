"""The work of the hooks in a step is bounded, whatever the step consists of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpwatch.probe.steps.tracker import COST_SHARE, EVENT_COST_NS, FIRST_EVENTS
from dpwatch.wire.messages import Step

MS = 1_000_000


class Script:
    """Trains, and counts what the hooks really did."""

    def __init__(self, rig, monkeypatch):
        self.rig = rig
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.loader = torch.utils.data.DataLoader(torch.ones(120, 3), batch_size=2)
        self.events = 0
        lane = type(rig.probe.steps.main)
        enter = lane.enter

        def counted(lane, phase):
            self.events += 1
            return enter(lane, phase)

        monkeypatch.setattr(lane, "enter", counted)

    def step(self, kind, took_ms, times=60):
        x, loss = torch.ones(2, 3), torch.zeros(())
        if kind == "module calls":
            for _ in range(times):
                loss = self.model(x).mean()
        elif kind == "backwards":
            for _ in range(times):
                loss = self.model(x).mean()
                loss.backward(retain_graph=True)
        else:
            for batch in self.loader:
                loss = self.model(batch).mean()
        self.rig.clocks.run(took_ms * MS)
        loss.backward()
        self.optimizer.step()


@pytest.fixture
def script(rig, monkeypatch):
    return Script(rig, monkeypatch)


@pytest.mark.parametrize("kind", ["module calls", "backwards", "batches"])
@pytest.mark.parametrize("took_ms", [10, 40])
def test_steps_with_many_events_are_sampled_rarely_and_completely(script, kind, took_ms):
    steps = 240
    for _ in range(20):
        script.step(kind, took_ms)
    first, script.events = script.events, 0
    for _ in range(steps):
        script.step(kind, took_ms)
    assert first > 0
    assert script.events * EVENT_COST_NS <= 2 * COST_SHARE * steps * took_ms * MS
    told = [s for s in script.rig.records(Step) if s.step >= 20]
    assert 2 <= len(told) < steps / 2
    for s in told:
        assert s.end_ns - s.start_ns == took_ms * MS
        assert None not in (s.forward_ns, s.backward_ns, s.optimizer_ns)
    assert script.rig.probe.steps.step == steps + 20


def test_long_steps_with_as_many_events_are_all_measured(script):
    for _ in range(30):
        script.step("module calls", 400)
    assert [s.step for s in script.rig.records(Step)] == list(range(30))


def test_a_step_that_does_not_end_has_bounded_cost(script):
    x = torch.ones(2, 3)
    for _ in range(2 * FIRST_EVENTS):
        script.model(x)  # an evaluation with gradients on, say
        script.rig.clocks.run(1_000)
    assert script.events <= FIRST_EVENTS
    for _ in range(3):
        script.step("module calls", 30, times=1)
    assert script.rig.probe.steps.step == 3
