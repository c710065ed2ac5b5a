"""Where the probe looks into torch: five places, each put back as it was on close.

| event | place |
|---|---|
| forward | `torch.nn.Module.__call__`, the outermost call of a thread |
| backward | `torch.autograd.backward`, which `Tensor.backward` calls |
| optimizer | torch's global optimizer step hooks |
| data | `_BaseDataLoaderIter.__next__` |
| scaled losses | `torch.amp.GradScaler.scale` |

(Forward hooks would break graphs of torch.compile, and full-backward hooks cost half a step.)

A thread without a lane passes straight through. What the wrapped call raises comes out unchanged;
what goes wrong in the probe itself never comes out, it turns the probe off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from dpwatch.probe.lanes import here
from dpwatch.probe.steps import Steps

Fail = Callable[[BaseException], None]


class Hooks:
    """The hooks, in place from construction until `close`."""

    def __init__(self, steps: Steps, fail: Fail) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._handles: list[Any] = []
        self._steps = steps
        self._fail = fail
        try:
            self._replace(torch.nn.Module, "__call__", _forward)
            self._replace(torch.autograd, "backward", _backward)
            self._replace(_BaseDataLoaderIter, "__next__", _next_batch)
            self._replace(torch.amp.GradScaler, "scale", _scale)
            begins, ends = _optimizer(steps, fail)
            self._handles.append(register_optimizer_step_pre_hook(begins))
            self._handles.append(register_optimizer_step_post_hook(ends))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Puts everything back, except where somebody has since put theirs on top of ours."""
        for handle in self._handles:
            handle.remove()
        for owner, name, original, ours in reversed(self._replaced):
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)
        self._handles.clear()
        self._replaced.clear()

    def _replace(
        self, owner: Any, name: str, make: Callable[[Any, Steps, Fail], Callable[..., Any]]
    ) -> None:
        original = vars(owner)[name]
        ours = make(original, self._steps, self._fail)
        setattr(owner, name, ours)
        self._replaced.append((owner, name, original, ours))


def _forward(original: Callable[..., Any], steps: Steps, fail: Fail) -> Callable[..., Any]:
    local = here
    compiling = torch.compiler.is_dynamo_compiling

    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Dynamo sees a constant first, so nothing of what follows is traced or guarded.
        if compiling():
            return original(self, *args, **kwargs)
        lane = local.lane
        if lane is None or lane.in_module:
            return original(self, *args, **kwargs)
        counts = False
        lane.in_module = True
        try:
            counts = steps.module_begins(lane, self, args, kwargs)
        except Exception as error:  # noqa: BLE001 - never into the user's code
            fail(error)
        done = False
        try:
            result = original(self, *args, **kwargs)
            done = True
            return result
        finally:
            lane.in_module = lane.over or lane.asleep
            if counts and lane.depth:
                try:
                    lane.exit()
                    if not done:
                        steps.pass_raised(lane)
                except Exception as error:  # noqa: BLE001
                    fail(error)

    return __call__


def _backward(original: Callable[..., Any], steps: Steps, fail: Fail) -> Callable[..., Any]:
    local = here

    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        lane = local.lane
        if lane is None or lane.over:
            original(tensors, grad_tensors, *args, **kwargs)
            return
        if lane.asleep:
            original(tensors, grad_tensors, *args, **kwargs)
            steps.dozed_backward()
            return
        try:
            steps.backward_begins(lane)
        except Exception as error:  # noqa: BLE001
            fail(error)
        done = False
        try:
            original(tensors, grad_tensors, *args, **kwargs)
            done = True
        finally:
            try:
                steps.backward_ends(lane, tensors if done and grad_tensors is None else None, done)
            except Exception as error:  # noqa: BLE001
                fail(error)

    return backward


def _next_batch(original: Callable[..., Any], steps: Steps, fail: Fail) -> Callable[..., Any]:
    local = here

    def __next__(self: Any) -> Any:
        lane = local.lane
        if lane is None or lane.over or lane.asleep:
            return original(self)
        counts = False
        try:
            counts = steps.data_begins(lane)
        except Exception as error:  # noqa: BLE001
            fail(error)
        try:
            return original(self)
        finally:
            if counts and lane.depth:
                try:
                    lane.exit()
                except Exception as error:  # noqa: BLE001
                    fail(error)

    return __next__


def _scale(original: Callable[..., Any], steps: Steps, fail: Fail) -> Callable[..., Any]:
    local = here

    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        lane = local.lane
        if lane is steps.main and not lane.asleep and not lane.over and scaled is not outputs:
            try:
                steps.scaled(self, scaled)
            except Exception as error:  # noqa: BLE001
                fail(error)
        return scaled

    return scale


def _optimizer(steps: Steps, fail: Fail) -> tuple[Callable[..., None], Callable[..., None]]:
    def begins(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        lane = here.lane
        if lane is not None and not lane.over and not lane.asleep:
            try:
                steps.optimizer_begins(lane, optimizer)
            except Exception as error:  # noqa: BLE001
                fail(error)

    def ends(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        lane = here.lane
        if lane is not None and not lane.over:
            try:
                if lane.asleep:
                    steps.dozed_optimizer()
                else:
                    steps.optimizer_ends(lane, optimizer)
            except Exception as error:  # noqa: BLE001
                fail(error)

    return begins, ends
