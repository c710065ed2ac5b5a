"""FSDP as PyTorch 1.11 introduced it: `FullyShardedDataParallel` around each unit.

A unit (a block, and the root: embeddings, positions, last norm, head) is one flat tensor: its
parameters concatenated and padded to a multiple of N; each rank keeps one N-th of it. Units can be
defined in two ways, with the same result here: `--wrap auto` passes the whole model and a policy
(every `Block`) to the wrapper; `--wrap manual` calls `wrap` on each part under `enable_wrap`. Each
step, on every rank:

1. Forward. Before a unit's forward its flat tensor is all-gathered, and after it freed, except the
   root's, which is needed again at once.
2. Backward. Before a unit's backward it is gathered again (the next unit's while this one
   computes), and after it freed; the flat gradient is reduce-scattered. With gradient accumulation
   every micro-batch does this.
3. The optimizer's update, each rank on its part of each flat tensor (`use_orig_params=False`, as
   in 1.11: the optimizer sees one parameter a unit).

Bytes are those of `fsdp`: P/N of parameters, gradients and each of Adam's moments, one or two
units gathered; (N − 1)/N · P sent three times, the root's part of it twice. Only padding
differs: at most N − 1 elements per unit here, about one row of every parameter there.

`bf16-mixed` is FSDP's own policy: gathered and computed in bfloat16, reduced and kept in float32.
`cpu_offload` needs an accelerator: without one torch has no device to load parameters to.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, enable_wrap, wrap

from dpwatch.probe.api import ProbeLike

from ..config import ConfigError, TrainConfig
from ..model import Block, LanguageModel, build_model
from ..rank_place import RankPlace
from .base import ModuleStep, State, Strategy, make_optimizer


def check(config: TrainConfig, place: RankPlace) -> None:
    """Rejects CPU offload without an accelerator (`ConfigError`)."""
    if config.cpu_offload and place.virtual:
        raise ConfigError(
            "fsdp1 can't offload to the CPU without an accelerator: its devices here are host "
            "memory already; leave out --cpu-offload, or use fsdp, which simulates it"
        )


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model in its wrappers."""
    with _quietly():
        wrapped = wrapped_units(build_model(config).to(place.device), config, place)
    optimizer = make_optimizer(wrapped.parameters(), config)
    return Fsdp1Step(wrapped, wrapped, optimizer, config, place, probe)


def wrapped_units(
    model: LanguageModel, config: TrainConfig, place: RankPlace
) -> FullyShardedDataParallel:
    """Wraps each block as a unit, and the rest as the root: by policy, or by hand."""
    options: dict[str, Any] = {"device_id": place.device, "use_orig_params": False}
    if config.precision == "bf16-mixed":
        options["mixed_precision"] = MixedPrecision(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if config.cpu_offload:
        options["cpu_offload"] = CPUOffload(offload_params=True)
    if config.wrap == "auto":
        policy = ModuleWrapPolicy({Block})
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, **options)
    with enable_wrap(wrapper_cls=FullyShardedDataParallel, **options):
        model.blocks = nn.Sequential(*(wrap(block) for block in model.blocks))
        return cast("FullyShardedDataParallel", wrap(model))


class Fsdp1Step(ModuleStep):
    """The usual step; the wrapper gathers and scatters."""

    wrapped: FullyShardedDataParallel

    def computing(self) -> AbstractContextManager[object]:
        """See `ModuleStep`; the wrapper sets the precision."""
        return nullcontext()

    def parameters(self) -> dict[str, Tensor]:
        """See `Strategy`; all ranks must call it, since each gathers the others' parts."""
        whole = FullyShardedDataParallel.summon_full_params
        with _quietly(), torch.no_grad(), whole(self.wrapped, writeback=False):
            return {name: p.detach().clone() for name, p in self.wrapped.named_parameters()}

    def state(self) -> State:
        """See `Strategy`: this rank's part of each flat tensor."""
        return {"model": super().parameters(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: State) -> None:
        """See `Strategy`."""
        with torch.no_grad():
            for name, part in super().parameters().items():
                part.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses torch's warnings that this wrapper is deprecated: here it is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
