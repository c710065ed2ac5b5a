"""A step's loss and samples, however the script gets its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpwatch.wire.messages import Step

STEPS = 4


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    return model, lambda: (model(x) - y).pow(2).mean()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def _every_step_is_looked_at(rig):
    """Each step takes so long that its loss is read."""
    handle = register_optimizer_step_pre_hook(lambda *_: rig.clocks.run(200_000_000))
    yield
    handle.remove()


def told(rig):
    return [(s.loss, s.samples) for s in rig.records(Step)]


def test_of_an_optimizers_trials_the_first_counts(rig, setting):
    model, loss_of = setting
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)

    def closure():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    printed = [float(optimizer.step(closure).detach()) for _ in range(STEPS)]
    assert told(rig) == [(loss, 32) for loss in printed]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_of_a_sharpness_aware_step_the_first_pass_counts(rig, setting, set_to_none):
    model, loss_of = setting
    optimizer = sgd(model)
    printed = []
    for _ in range(STEPS):
        loss = loss_of()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * p.grad)
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        printed.append(float(loss.detach()))
    assert told(rig) == [(loss, 32) for loss in printed]


def test_a_backward_whose_gradients_are_thrown_away_does_not_count(rig, setting):
    model, loss_of = setting
    optimizer = sgd(model)
    printed = []
    for _ in range(STEPS):
        model(torch.ones(2, 8)).sum().backward()  # such as to look at a gradient's norm
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        printed.append(float(loss.detach()))
    assert [loss for loss, _ in told(rig)] == printed


def test_gradients_changed_in_place_between_backwards_leave_the_loss_unknown(rig, setting):
    model, loss_of = setting
    optimizer = sgd(model)
    loss_of().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    loss_of().backward()
    optimizer.step()
    assert [loss for loss, _ in told(rig)] == [None]


def test_gradients_by_autograd_grad_make_a_step(rig, setting):
    model, loss_of = setting
    optimizer = sgd(model)
    printed = []
    for _ in range(STEPS):
        loss = loss_of()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        printed.append(float(loss.detach()))
    assert told(rig) == [(loss, 32) for loss in printed]


def test_a_gradient_penalty_is_not_a_separate_loss(rig, setting):
    model, _ = setting
    optimizer = sgd(model)
    printed = []
    for _ in range(STEPS):
        x = torch.randn(16, 8, requires_grad=True)
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        loss = out.pow(2).mean() + slope.pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        printed.append(float(loss.detach()))
    assert told(rig) == [(loss, 16) for loss in printed]


def test_a_root_in_a_tuple_is_read(rig, setting):
    model, loss_of = setting
    optimizer = sgd(model)
    loss = loss_of()
    torch.autograd.backward((loss,))
    optimizer.step()
    assert told(rig) == [(float(loss.detach()), 32)]


def test_calls_without_a_backward_are_not_samples(rig, setting):
    model, loss_of = setting
    optimizer = sgd(model)
    for _ in range(STEPS):
        for _ in range(100):
            model(torch.ones(1, 8))  # an evaluation with gradients on
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [samples for _, samples in told(rig)] == [32] * STEPS


def test_each_micro_batch_of_a_pipeline_counts_once(rig, setting):
    model, _ = setting
    optimizer = sgd(model)
    for _ in range(STEPS):
        outputs = [model(torch.ones(8, 8)) for _ in range(4)]
        for out in outputs:
            out.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [samples for _, samples in told(rig)] == [32] * STEPS


def test_a_frozen_teacher_is_neither_counted_nor_trained(rig, setting):
    model, loss_of = setting
    teacher = nn.Linear(8, 400).requires_grad_(False)
    optimizer = sgd(model)
    for _ in range(STEPS):
        teacher(torch.ones(64, 8))
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [samples for _, samples in told(rig)] == [32] * STEPS
    assert rig.probe.steps.models.params == 36
