"""Injects a `Fault`: the rank sleeps in the given phase, once per step.

Hooks on whatever module and optimizer are called put the delay where a slow rank would have it, so
no strategy knows of it. The probe is told that the thread waits, so the delay is not taken for GIL
wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from dpwatch.probe.api import ProbeLike

from .config import TrainConfig, require
from .fault import Fault, parse_fault
from .rank_place import RankPlace


class _Here(threading.local):
    device = 0
    calls = 0  # nested module calls
    step = -1  # the last step in which this thread was delayed


class FaultInjector:
    """The configured fault, if it concerns this process. A context manager that holds the hooks.

    Attributes:
        probe: The probe to train with; it tracks which device a thread works for.
    """

    def __init__(self, config: TrainConfig, place: RankPlace, probe: ProbeLike) -> None:
        self._here = _Here()
        self._fault = parse_fault(config.fault) if config.fault else None
        self._shared = not require(config.strategy).distributed
        if self._fault and not self._shared and self._fault.rank != place.rank:
            self._fault = None
        self._step = 0
        self.probe = (
            probe if self._fault is None else cast("ProbeLike", _LaneTracker(probe, self._here))
        )
        self._hooks = ExitStack()

    def __enter__(self) -> FaultInjector:
        if self._fault is not None:
            self._hook(self._fault)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def steps(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Passes on the batches, one per step; delays `data` and `host` happen here."""
        for tokens in batches:
            self._step += 1
            if self._fault is not None and self._fault.kind == "data":
                with self.probe.phase("data"):
                    self._sleep(self._fault)
            elif self._fault is not None and self._fault.kind == "host":
                self._sleep(self._fault)
            yield tokens

    def _hook(self, fault: Fault) -> None:
        handles: list[Any] = []
        if fault.kind == "forward":
            handles.append(
                modules.register_module_forward_pre_hook(lambda *call: self._once(fault))
            )
        elif fault.kind == "backward":
            handles.append(modules.register_module_forward_pre_hook(self._enters))
            handles.append(modules.register_module_forward_hook(self._leaves))
        elif fault.kind == "optimizer":
            hook = optimizers.register_optimizer_step_pre_hook
            handles.append(hook(lambda *call: self._once(fault)))
        for handle in handles:
            self._hooks.callback(handle.remove)

    def _enters(self, *call: object) -> None:
        if not _in_backward():  # there, activation checkpointing leaves modules early
            self._here.calls += 1

    def _leaves(self, module: object, inputs: object, output: object) -> None:
        """Delays the gradient of the outermost module's output, with which backward begins."""
        if _in_backward():
            return
        self._here.calls -= 1
        fault = self._fault
        if fault is None or self._here.calls:
            return
        if isinstance(output, Tensor) and output.requires_grad:
            hook: Callable[..., object] = output.register_hook
            hook(lambda gradient: self._once(fault))

    def _once(self, fault: Fault) -> None:
        here = self._here
        if here.step == self._step or (self._shared and here.device != fault.rank):
            return
        here.step = self._step
        self._sleep(fault)

    def _sleep(self, fault: Fault) -> None:
        # The probe takes waits in the optimizer for waits on other devices; this delay is its own.
        own = fault.kind == "optimizer" and not self._shared
        with nullcontext() if own else self.probe.waiting():
            time.sleep(fault.delay_ms / 1e3)


def _in_backward() -> bool:
    running: bool = torch._C._current_graph_task_id() != -1
    return running


class _LaneTracker:
    """A probe that remembers which device a thread works for."""

    def __init__(self, probe: ProbeLike, here: _Here) -> None:
        self._probe = probe
        self._here = here

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)

    @contextmanager
    def lane(self, device: int) -> Iterator[None]:
        before, self._here.device = self._here.device, device
        try:
            with self._probe.lane(device):
                yield
        finally:
            self._here.device = before
