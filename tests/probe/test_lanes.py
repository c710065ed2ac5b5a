"""What a phase counts when its thread switches to another device, or waits for one."""

import torch
from torch import nn

from dpwatch.wire.messages import Step

MS = 1_000_000


class Away(nn.Module):
    """A model that works for another device in the middle of forward and of backward."""

    def __init__(self, rig):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.rig = rig

    def forward(self, x):
        self.work("forward")
        out = self.linear(x)
        out.register_hook(lambda _: self.work("backward"))
        return out

    def work(self, phase):
        self.rig.clocks.run(4 * MS)
        with self.rig.probe.lane(1), self.rig.probe.phase(phase):
            self.rig.clocks.run(10 * MS)
        self.rig.clocks.run(2 * MS)


class Update(torch.optim.SGD):
    """An optimizer that works, and waits for another device's update."""

    def __init__(self, rig, parameters):
        super().__init__(parameters, lr=0.1)
        self.rig = rig

    def step(self, closure=None):
        self.rig.clocks.run(3 * MS)
        with self.rig.probe.waiting(), self.rig.probe.waiting():
            self.rig.clocks.block(7 * MS)


def steps_of(rig):
    model = Away(rig)
    optimizer = Update(rig, model.parameters())
    for _ in range(2):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    return rig.records(Step)[2:]


def test_a_phase_pauses_while_its_thread_works_for_another_device(rig):
    main, other = steps_of(rig)
    assert (main.device, main.forward_ns, main.backward_ns) == (0, 6 * MS, 6 * MS)
    assert (other.device, other.forward_ns, other.backward_ns) == (1, 10 * MS, 10 * MS)
    for step in (main, other):
        assert step.end_ns - step.start_ns == 42 * MS


def test_the_optimizer_phase_excludes_waits_for_other_devices(rig, monkeypatch):
    monkeypatch.setattr("dpwatch.probe.steps.tracker.MEASURED_STEP_NS", 0)
    main, _ = steps_of(rig)
    assert main.optimizer_ns == 3 * MS
    assert main.idle_ns == 27 * MS


def test_on_the_training_thread_nobody_else_can_hold_the_gil(rig, monkeypatch):
    monkeypatch.setattr("threading.active_count", lambda: 2)  # this one and the sender
    monkeypatch.setattr("dpwatch.probe.steps.tracker.MEASURED_STEP_NS", 0)
    block = rig.clocks.run
    rig.clocks.run = lambda ns: (block(ns - MS), rig.clocks.block(MS))
    main, other = steps_of(rig)
    assert (main.gil_wait_ns, other.gil_wait_ns) == (0, 0)
