"""Predicts the memory of this run's model under other strategies, from measured sizes."""

from __future__ import annotations

from dataclasses import dataclass

from dpwatch.plan.states import STRATEGIES, ModelState, bytes_per_device
from dpwatch.run.model.snapshot import Run

_WHOLE = ("single", "ddp")
_ON_FIRST = ("dp", "ps-gpu0")
_SHARED_OUT = ("zero1", "zero2", "zero3", "fsdp1", "fsdp", "ps-sharded")
"""Strategies by where optimizer state is kept: whole on each device, on device 0, or sharded."""

SAME = {"zero3": "fsdp", "fsdp1": "fsdp"}


@dataclass(kw_only=True, slots=True, frozen=True)
class Elsewhere:
    """Model state per device under a strategy.

    Attributes:
        strategy: Name of the strategy.
        first: Bytes on device 0.
        others: Bytes on each other device.
        here: Whether it is the run's own strategy.
    """

    strategy: str
    first: int
    others: int
    here: bool


def elsewhere(run: Run) -> list[Elsewhere]:
    """Parameters, gradients and optimizer state per device, by strategy; empty if unknown.

    The size of the optimizer's state is measured: it depends on the optimizer, and there is none
    before its first step.
    """
    whole = _model_state(run)
    devices = sum(rank.device_kind != "host" for rank in run.ranks)
    if whole is None or devices < 2:
        return []
    own = SAME.get(run.strategy, run.strategy)
    return [
        Elsewhere(strategy=name, first=first, others=others, here=name == own)
        for name in STRATEGIES
        for first, others in [bytes_per_device(name, whole, devices)]
    ]


def _model_state(run: Run) -> ModelState | None:
    params = run.model.param_bytes
    held = [rank.memory.at_step_end.optimizer for rank in run.ranks if rank.device_kind != "host"]
    known = [each for each in held if each is not None]
    if not params or not known or len(known) < len(held):
        return None
    if run.strategy in _WHOLE:
        optimizer = max(known)
    elif run.strategy in _ON_FIRST:
        optimizer = known[0]
    elif run.strategy in _SHARED_OUT:
        optimizer = sum(known)
    else:
        return None
    # A gradient nearly always has its parameter's dtype.
    return ModelState(params=params, grads=params, optimizer=optimizer) if optimizer else None
