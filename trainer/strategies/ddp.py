"""`DistributedDataParallel`: every rank holds the model, and gradients are all-reduced.

At start, rank 0 broadcasts its parameters. Then each step, on every rank:

1. Forward and loss over the rank's own slice of the global batch.
2. Backward. Gradients go into buckets of 25 MiB (the first 1 MiB); a full bucket is all-reduced
   while backward goes on, summed over the ranks and divided by their number. Slices are equal in
   size, so the mean of the ranks' means is the global batch's mean. With gradient accumulation
   only the last micro-batch's backward sends.
3. The optimizer's update, the same on every rank, so parameters stay equal without being sent.

Each rank holds, in units of the parameters' bytes P: parameters P, gradients P, Adam's moments
2P, buckets P (`gradient_as_bucket_view=False`, torch's default), and its slice's activations.
With `--no-overlap` there is one bucket as large as the model, full at the end of backward: the same
bytes, and nothing to overlap them with.
It passes P to all-reduce each step; a ring sends 2 (N − 1)/N · P, the same on every rank.

Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import build_model
from ..rank_place import RankPlace
from .base import ModuleStep, Strategy, make_optimizer


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model in its wrapper; the worker has already created the process group."""
    model = build_model(config).to(place.device)
    device_ids = None if place.virtual else [place.device]
    # Only if it is not given is the first bucket smaller than the others.
    whole = None if config.overlap else _mebibytes_over(model)
    wrapped = DistributedDataParallel(model, device_ids=device_ids, bucket_cap_mb=whole)
    optimizer = make_optimizer(model.parameters(), config)
    return DdpStep(model, wrapped, optimizer, config, place, probe)


def _mebibytes_over(model: nn.Module) -> int:
    """Size of a bucket that holds all gradients."""
    return (sum(parameter.nbytes for parameter in model.parameters()) >> 20) + 1


class DdpStep(ModuleStep):
    """All-reduces the accumulated gradients in the last micro-batch's backward."""

    wrapped: DistributedDataParallel

    def communicating(self, *, last: bool) -> AbstractContextManager[object]:
        """See `ModuleStep`."""
        return nullcontext() if last else self.wrapped.no_sync()
