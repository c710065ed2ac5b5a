"""A script's modes, subclasses and hooks see only what the script does itself."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpwatch.probe.instruments import NoCollectives, NoLedger


class HearsFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.heard.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class HearsOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


class Image(torch.Tensor):
    """A subclass that records what is done with it."""

    heard: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.heard.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def train(dtype=torch.float32, batch=lambda: torch.ones(2, 3)):
    torch.manual_seed(0)
    model = nn.Linear(3, 1).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        loss = model(batch().to(dtype)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.autograd.grad(model(torch.ones(1, 3, dtype=dtype)).sum(), model.weight)
        optimizer.step()


@pytest.fixture
def watched(make_probe, monkeypatch):
    """Starts a probe that measures every step, with hooks alone."""
    monkeypatch.setattr("dpwatch.probe.steps.tracker.SAMPLING_NS", -1)
    monkeypatch.setattr("dpwatch.probe.steps.tracker.COST_SHARE", 1e9)
    monkeypatch.setattr("dpwatch.probe.probe._ledger", lambda *_: NoLedger())
    monkeypatch.setattr("dpwatch.probe.probe._collectives", lambda *_: NoCollectives())
    return make_probe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", [HearsFunctions, HearsOps])
def test_function_modes_see_nothing_of_the_probe(watched, mode, dtype):
    with mode() as plain:
        train(dtype)
    probe = watched()
    with mode() as also:
        train(dtype)
    assert probe.steps.step == 4
    assert also.heard == plain.heard


def test_tensor_subclasses_see_nothing_of_the_probe(watched):
    def batch():
        return torch.ones(2, 3).as_subclass(Image)

    Image.heard = []
    train(batch=batch)
    plain, Image.heard = Image.heard, []
    watched()
    train(batch=batch)
    assert Image.heard == plain


def test_parameters_can_still_be_swapped(watched):
    watched()
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    torch.utils.swap_tensors(model.weight, nn.Parameter(torch.zeros(1, 3)))
    assert float(model.weight.detach().sum()) == 0.0


HOOKED = [
    torch.nn.Module.__call__,
    torch.utils.data.dataloader._BaseDataLoaderIter.__next__,
    torch.amp.GradScaler.scale,
    torch.autograd.graph._engine_run_backward,
]


def looks_like(function):
    return (
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        inspect.signature(function),
        inspect.getsource(function),
    )


def test_hooked_functions_look_unchanged(watched):
    before = [looks_like(function) for function in HOOKED]
    watched()
    now = [
        torch.nn.Module.__call__,
        torch.utils.data.dataloader._BaseDataLoaderIter.__next__,
        torch.amp.GradScaler.scale,
        torch.autograd.graph._engine_run_backward,
    ]
    assert [looks_like(function) for function in now] == before
    assert all(ours is not theirs for ours, theirs in zip(now, HOOKED, strict=True))
    for function in (torch.autograd.backward, torch.autograd.grad, torch.amp.GradScaler.scale):
        assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(torch.nn.Module.__call__) is torch.nn.Module.__call__


def test_public_functions_compared_by_identity_are_unchanged(watched):
    functions = (torch.autograd.backward, torch.autograd.grad, torch.Tensor.backward)
    watched()
    assert functions == (torch.autograd.backward, torch.autograd.grad, torch.Tensor.backward)


def test_modules_calls_are_as_deep_as_without(watched):
    class Depth(nn.Module):
        def forward(self, x):
            frame, depth = inspect.currentframe(), 0
            while frame is not None:
                frame, depth = frame.f_back, depth + 1
            return x * depth

    model = nn.Sequential(Depth(), nn.Sequential(Depth()))
    plain = float(model(torch.ones(())))
    watched()
    assert float(model(torch.ones(()))) == plain


def test_backward_is_as_deep_as_without(watched):
    """Warnings count frames to name the script's line."""
    depths = []

    def look(grad):
        frame, depth = inspect.currentframe(), 0
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        depths.append(depth)

    def backward():
        out = torch.ones(2, requires_grad=True) * 2
        out.register_hook(look)
        out.sum().backward()

    backward()
    watched()
    for _ in range(100):
        backward()
    assert set(depths) == {depths[0]}


def test_hooks_that_had_to_stay_see_nothing_of_a_later_probe(watched):
    first = watched()
    ours = torch.autograd._engine_run_backward

    def on_top(*args, **kwargs):
        return ours(*args, **kwargs)

    torch.autograd._engine_run_backward = on_top
    try:
        first.close()
        assert torch.autograd._engine_run_backward is on_top
        second = watched()
        train()
        second.close()
    finally:
        torch.autograd._engine_run_backward = torch.autograd.graph._engine_run_backward
    assert (first.steps.step, second.steps.step) == (0, 4)
