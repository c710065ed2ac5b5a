"""What other strategies would hold of this run's model: predicted, from what was measured here."""

from __future__ import annotations

from dataclasses import dataclass

from dpwatch.plan.states import STRATEGIES, ModelState, bytes_per_device
from dpwatch.run.model.snapshot import Run

_WHOLE = ("single", "ddp")
_ON_FIRST = ("dp", "ps-gpu0")
_SHARED_OUT = ("zero1", "zero2", "zero3", "fsdp1", "fsdp", "ps-sharded")
"""Where a run keeps its optimizer's state: all of it everywhere, on device 0, or a part on each."""

SAME = {"zero3": "fsdp", "fsdp1": "fsdp"}


@dataclass(kw_only=True, slots=True, frozen=True)
class Elsewhere:
    """A strategy's model state a device, in bytes.

    Attributes:
        strategy: Which.
        first: Held by device 0.
        others: Held by each of the others.
        here: It is the run's own.
    """

    strategy: str
    first: int
    others: int
    here: bool


def elsewhere(run: Run) -> list[Elsewhere]:
    """Parameters, gradients and optimizer state a device, by strategy; none where not known.

    The optimizer's whole state is what was measured: its bytes depend on the optimizer, and there
    is none before its first step.
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
    # A gradient has its parameter's type, unless a script goes out of its way.
    return ModelState(params=params, grads=params, optimizer=optimizer) if optimizer else None
