"""Hybrid sharding: `fully_shard` inside groups of ranks, with the groups as replicas.

N = R·S ranks form a grid of R replicas (rows) by S shards (columns). S is the largest proper
divisor of N, or N if it is prime: then there is one replica, and this is `fsdp`. Each step, on
every rank:

1. Forward and backward as in `fsdp`, but within the row, the `shard` group: units are all-gathered
   from S chunks, their gradients reduce-scattered into S.
2. A unit's gradient chunk is then all-reduced within the column, the `replicate` group: the ranks
   that hold the same chunk. The result is the mean over all N.
3. The optimizer's update, each rank on its chunks, the same in all replicas.

Each rank holds P/S parameters, gradients and so on, instead of P/N. It sends (S − 1)/S · P three
times in the shard group, ideally over fast links, and passes only P/S to the all-reduce over the
slow ones.
"""

from __future__ import annotations

from torch.distributed.device_mesh import init_device_mesh

from dpwatch.plan.sharded import shard_group
from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..rank_place import RankPlace
from .base import Strategy
from .sharded import ShardedStep, check

__all__ = ["build", "check"]


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model sharded in rows and replicated in columns."""
    shards = shard_group(place.world_size)
    grid = (place.world_size // shards, shards)
    mesh = init_device_mesh(place.device.type, grid, mesh_dim_names=("replicate", "shard"))
    if grid[0] == 1:
        mesh = mesh["shard"]  # one replica has nothing to all-reduce
    return ShardedStep(mesh, config, place, probe)
