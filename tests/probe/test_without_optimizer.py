"""Steps of scripts whose optimizers are not observed, or that have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpwatch.probe.steps.without_optimizer import ENOUGH
from dpwatch.wire.messages import Step

MS = 1_000_000


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def update(model):
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.01 * p.grad)
            p.grad = None


def run(rig, model, steps, backwards=1, took_ms=30):
    for _ in range(steps):
        for _ in range(backwards):
            model(torch.ones(2, 3)).mean().backward()
        rig.clocks.run(took_ms * MS)
        update(model)


@pytest.mark.parametrize("took_ms", [30, 1])
def test_updates_by_hand_end_steps(rig, model, took_ms):
    run(rig, model, 200, took_ms=took_ms)
    steps = rig.records(Step)
    assert rig.probe.steps.step == 200
    for step in steps:
        assert step.end_ns - step.start_ns == took_ms * MS


def test_accumulated_gradients_make_one_step(rig, model):
    run(rig, model, 12, backwards=4)
    model(torch.ones(2, 3))
    assert rig.probe.steps.step == 12


def test_an_optimizer_whose_hooks_stop_is_noticed(rig, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(10):
        model(torch.ones(2, 3)).mean().backward()
        rig.clocks.run(30 * MS)
        optimizer.step()
        optimizer.zero_grad()
    run(rig, model, 10)  # such as by a compiled step, which runs no hooks
    model(torch.ones(2, 3))
    assert rig.probe.steps.step == 20


def test_an_optimizer_whose_hooks_stop_is_noticed_in_short_steps(rig, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(300):
        model(torch.ones(2, 3)).mean().backward()
        rig.clocks.run(MS)
        optimizer.step()
        optimizer.zero_grad()
    run(rig, model, 300, took_ms=1)
    rig.probe.close()
    assert rig.probe.steps.step == 600


def test_parameters_moved_between_backwards_end_no_step(rig, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3 * ENOUGH):
        model(torch.ones(2, 3)).mean().backward()
        update(model)  # as sharpness-aware minimisation does
        model(torch.ones(2, 3)).mean().backward()
        rig.clocks.run(30 * MS)
        optimizer.step()
        optimizer.zero_grad()
    assert len(rig.records(Step)) == 3 * ENOUGH


@pytest.mark.parametrize("took_ms", [30, 1])
def test_an_optimizer_inside_backward_makes_each_backward_a_step(rig, model, took_ms):
    optimizers = {p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()}

    def hook(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    printed = []
    for _ in range(100):
        rig.clocks.run(took_ms * MS)
        loss = model(torch.ones(2, 3)).mean()
        loss.backward()
        printed.append(float(loss.detach()))
    assert rig.probe.steps.step == 100
    steps = rig.records(Step)
    assert all(s.loss in (None, printed[s.step]) for s in steps)
    assert {s.end_ns - s.start_ns for s in steps[1:]} == {took_ms * MS}


def test_updates_by_hand_inside_backward_end_steps(rig, model):
    def hook(p):
        with torch.no_grad():
            p.sub_(0.01 * p.grad)
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for _ in range(20):
        rig.clocks.run(30 * MS)
        model(torch.ones(2, 3)).mean().backward()
    assert rig.probe.steps.step == 20


def test_without_any_backward_optimizer_steps_end_steps(rig, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(12):
        for p in model.parameters():
            p.grad = torch.ones_like(p)  # evolution strategies, say
        rig.clocks.run(30 * MS)
        optimizer.step()
    assert rig.probe.steps.step == 12 - ENOUGH
