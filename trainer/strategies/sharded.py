"""What `fsdp` and `hsdp` share: FSDP2's `fully_shard` over a mesh of devices, and its step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dpwatch.probe.api import ProbeLike

from ..config import ConfigError, TrainConfig
from ..model import LanguageModel, build_model
from ..rank_place import RankPlace
from .base import ModuleStep, State, make_optimizer

OLDEST_OVER_GLOO = "2.13"
"""torch 2.6's `fully_shard` raises on CPU. 2.7's trains there, but not to the same parameters, and
raises if groups of ranks shard. Versions between 2.7 and this one were not tested."""


def check(config: TrainConfig, place: RankPlace) -> None:
    """Rejects virtual devices with a torch older than `OLDEST_OVER_GLOO` (`ConfigError`)."""
    if place.virtual and torch.__version__ < OLDEST_OVER_GLOO:
        raise ConfigError(
            f"{config.strategy} needs torch {OLDEST_OVER_GLOO} or newer on virtual devices: "
            f"fully_shard of torch {torch.__version__} fails on CPU or gives other gradients "
            "over gloo; update torch, or choose fsdp1 or zero3"
        )


class ShardedStep(ModuleStep):
    """The usual step over a model whose parameters are `DTensor`s, gathered by its wrapper's hooks.

    Args:
        mesh: One dimension to shard over, or two: replicate and shard.
    """

    def __init__(
        self, mesh: DeviceMesh, config: TrainConfig, place: RankPlace, probe: ProbeLike
    ) -> None:
        model = build_model(config).to(place.device)
        shard_units(model, mesh, config, place)
        optimizer = make_optimizer(model.parameters(), config)
        super().__init__(model, model, optimizer, config, place, probe)

    def computing(self) -> AbstractContextManager[object]:
        """See `ModuleStep`; the wrapper sets the precision."""
        return nullcontext()

    def parameters(self) -> dict[str, Tensor]:
        """See `Strategy`; all ranks must call it, since each gathers the others' shards."""
        with torch.no_grad():
            return {name: _dtensor(p).full_tensor() for name, p in self.model.named_parameters()}

    def state(self) -> State:
        """See `Strategy`: this rank's shards, as plain tensors."""
        kept: State = _local(
            {"model": super().parameters(), "optimizer": super().state()["optimizer"]}
        )
        return kept

    def load(self, state: State) -> None:
        """See `Strategy`."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                _dtensor(parameter).to_local().copy_(state["model"][name])
        optimizer = state["optimizer"]
        by_index = [_dtensor(p) for group in self.optimizer.param_groups for p in group["params"]]
        slots = {
            index: {key: _as_shard(value, by_index[index]) for key, value in slot.items()}
            for index, slot in optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**optimizer, "state": slots})


def shard_units(
    model: LanguageModel, mesh: DeviceMesh, config: TrainConfig, place: RankPlace
) -> None:
    """Shards each block as a unit, and the rest as the root."""
    policies: dict[str, Any] = {"mesh": mesh}
    if config.precision == "bf16-mixed":
        policies["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if config.cpu_offload:
        policies["offload_policy"] = CPUOffloadPolicy(pin_memory=not place.virtual)
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=config.reshard_after_forward, **policies)
    # By default the root's parameters stay gathered from forward to backward, on any torch.
    fully_shard(model, **policies)


def _dtensor(parameter: Tensor) -> DTensor:
    assert isinstance(parameter, DTensor)
    return parameter


def _local(value: Any) -> Any:
    """Replaces every `DTensor` by the shard this rank holds."""
    if isinstance(value, DTensor):
        return _dtensor(value.detach()).to_local()
    if isinstance(value, dict):
        return {key: _local(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_local(item) for item in value]
    return value


def _as_shard(value: Any, parameter: DTensor) -> Any:
    """Wraps a state tensor of the parameter's shape as its shard; leaves a step count as it is."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
