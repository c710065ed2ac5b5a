"""FSDP2, `fully_shard`: parameters, gradients and optimizer state sharded, gathered by unit.

A block is a unit; embeddings, positions, last norm and head are the root unit. Every parameter is
split along its first dimension into N chunks of equal size (the last ones padded), and each rank
keeps one chunk of each. Each step, on every rank:

1. Forward. Before a unit's forward its chunks are all-gathered; after it the gathered parameters
   are freed (`reshard_after_forward`), except the root's, which are needed again at once.
2. Backward. Before a unit's backward they are gathered again, unless they were kept; after it
   they are freed, and the unit's gradients are reduce-scattered, summed and divided by N, so that
   each rank is left with those of its chunks. With gradient accumulation every micro-batch does
   this: gradients are never whole for longer than a unit's backward.
3. The optimizer's update, each rank on its chunks.

Each rank holds P/N parameters, P/N gradients, 2P/N of Adam's moments (each plus padding), one or
two units gathered, and its slice's activations. It sends (N − 1)/N · P three times: two
all-gathers (one for the root) and a reduce-scatter. If parameters stay gathered between forward
and backward, it is only twice, for P bytes more memory at the peak.

`bf16-mixed` is FSDP's own policy: gathered parameters and compute in bfloat16, gradient reduction
and all state in float32. `cpu_offload` keeps the shards in host memory and copies them to the
device. Virtual devices are in host memory already, so there it moves nothing: it is simulated.

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.
"""

from __future__ import annotations

from torch.distributed.device_mesh import init_device_mesh

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..rank_place import RankPlace
from .base import Strategy
from .sharded import ShardedStep, check

__all__ = ["build", "check"]


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model, sharded over all ranks."""
    mesh = init_device_mesh(place.device.type, (place.world_size,))
    return ShardedStep(mesh, config, place, probe)
