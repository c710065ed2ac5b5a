"""ZeRO stage 1: DDP, with the optimizer's state sharded over the ranks.

At start, rank 0 broadcasts its parameters. Whole tensors are assigned, largest first, to the rank
with the fewest elements so far (`dpwatch.plan.partition`). Then each step, on every rank:

1. Forward and backward as in `ddp`: gradients are all-reduced in buckets during backward, only in
   the last micro-batch, and every rank gets the mean of all of them.
2. The optimizer's update of the rank's own tensors.
3. Every tensor is broadcast by its owner, one call per tensor.

Each rank holds, in units of the parameters' bytes P: parameters P, gradients P, buckets P, and
Adam's moments of its own tensors: 2P/N, plus or minus the largest tensor. It passes P to
all-reduce and P to broadcasts each step: a ring sends 2 (N − 1)/N · P for the first and
(N − 1)/N · P, on average over the ranks, for the second. (With reduce-scatter for the first, as in
the paper, both together are DDP's 2P; torch's `ZeroRedundancyOptimizer`, used here, works on top
of unmodified DDP.)

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020,
section 5.1.
"""

from __future__ import annotations

import warnings

from torch.nn.parallel import DistributedDataParallel

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import build_model
from ..rank_place import RankPlace
from .base import State, Strategy, optimizer_kind
from .ddp import DdpStep

with warnings.catch_warnings():  # torch compiles functional optimizers of its own, and warns itself
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    from torch.distributed.optim import ZeroRedundancyOptimizer


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model in DDP's wrapper, and the optimizer in torch's sharding one."""
    model = build_model(config).to(place.device)
    device_ids = None if place.virtual else [place.device]
    wrapped = DistributedDataParallel(model, device_ids=device_ids)
    kind, options = optimizer_kind(config)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options)
    return Zero1Step(model, wrapped, optimizer, config, place, probe)


class Zero1Step(DdpStep):
    """As DDP, with an optimizer that has only this rank's part of the state."""

    optimizer: ZeroRedundancyOptimizer

    def state(self) -> State:
        """See `Strategy`; of the optimizer, the state of the tensors that this rank owns."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.optim.state_dict()}

    def load(self, state: State) -> None:
        """See `Strategy`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.optim.load_state_dict(state["optimizer"])
