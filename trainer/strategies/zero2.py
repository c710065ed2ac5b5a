"""ZeRO stage 2: gradients are kept only by the rank that updates their parameter.

At start, rank 0 broadcasts its parameters. Whole tensors are assigned, largest first, to the rank
with the fewest elements so far: their owner (`dpwatch.plan.partition`). Then each step, on every
rank:

1. Forward and loss over the rank's own slice of the global batch.
2. Backward. As soon as all gradients of a bucket (tensors of one owner, at most 256 KiB or one
   tensor) are ready, they are copied into one flat tensor, freed, and reduced to their owner,
   summed over the ranks and divided by their number. Backward continues meanwhile, until the next
   bucket is full: one is in progress at a time. Afterwards only the owner keeps the result. With
   gradient accumulation every micro-batch does this, and the owner adds the results.
3. The owner's optimizer updates its tensors, and only those.
4. The tensors of an owner are contiguous in memory, so each rank broadcasts all of its own in one
   call, and receives those of the others.

Each rank holds, in units of the parameters' bytes P: parameters P, and for its own tensors only the
gradients, P/N, and Adam's moments, 2P/N, plus or minus the largest tensor. It passes P to
reductions per micro-batch, and P to broadcasts per step; a chain sends (N − 1)/N of either, on
average over the ranks: with one micro-batch as much as DDP does.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020,
section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dpwatch.plan.partition import greedy_owners, reduction_buckets
from dpwatch.plan.zero import ZERO2_BUCKET_ELEMENTS
from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import build_model
from ..rank_place import RankPlace
from .base import ModuleStep, Strategy, optimizer_kind
from .flat import lay_out, parts_of


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The whole model on every rank, and an optimizer for the tensors this rank owns."""
    model = build_model(config).to(place.device)
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    owners = greedy_owners(sizes, place.world_size)
    mine = [p for p, owner in zip(parameters, owners, strict=True) if owner == place.rank]
    kind, options = optimizer_kind(config)
    optimizer = kind([{"params": mine}], **options)  # a group may be empty, a plain list may not
    shares = Shares(parameters, owners)
    shares.broadcast_from_first()
    # Before its step counts as done, so that the broadcasts are part of it.
    optimizer.register_step_post_hook(lambda *_: shares.broadcast())
    reducer = Reducer(parameters, owners, place)
    return Zero2Step(model, optimizer, reducer, config, place, probe)


class Zero2Step(ModuleStep):
    """Reduces every micro-batch's gradients to their owners during its backward."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        reducer: Reducer,
        config: TrainConfig,
        place: RankPlace,
        probe: ProbeLike,
    ) -> None:
        super().__init__(model, model, optimizer, config, place, probe)
        self._reducer = reducer

    @contextmanager
    def communicating(self, *, last: bool) -> Iterator[None]:
        """See `ModuleStep`."""
        yield
        with self._probe.phase("backward"):
            self._reducer.finish()
        if last:
            self._reducer.hand_over()


class Shares:
    """Parameters by owner, those of one owner contiguous in memory."""

    def __init__(self, parameters: Sequence[nn.Parameter], owners: Sequence[int]) -> None:
        by_owner: dict[int, list[nn.Parameter]] = {}
        for parameter, owner in zip(parameters, owners, strict=True):
            by_owner.setdefault(owner, []).append(parameter)
        self._flat = {owner: lay_out(by_owner[owner]) for owner in sorted(by_owner)}

    def broadcast(self) -> None:
        """Each owner broadcasts its parameters."""
        works = [
            dist.broadcast(flat, src=owner, async_op=True) for owner, flat in self._flat.items()
        ]
        for work in works:
            work.wait()

    def broadcast_from_first(self) -> None:
        """Rank 0 broadcasts all parameters."""
        for flat in self._flat.values():
            dist.broadcast(flat, src=0)


class Bucket:
    """Gradients that are reduced together.

    Attributes:
        parameters: In the order in which backward is expected to reach them.
        owner: The rank that receives their sum.
        missing: Number of gradients still to come in this micro-batch's backward.
        mean: On the owner, the mean over the ranks, summed over the micro-batches so far.
    """

    def __init__(self, parameters: list[nn.Parameter], owner: int) -> None:
        self.parameters = parameters
        self.owner = owner
        self.missing = len(parameters)
        self.mean: Tensor | None = None

    def take_gradients(self) -> Tensor:
        """Copies the gradients into a flat tensor and frees them."""
        parts = []
        for parameter in self.parameters:
            assert parameter.grad is not None
            parts.append(parameter.grad.flatten())
            parameter.grad = None
        self.missing = len(self.parameters)
        return torch.cat(parts)


class Reducer:
    """Reduces gradients to their owners during backward.

    Buckets are reduced in a fixed order, the same on all ranks.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], owners: Sequence[int], place: RankPlace
    ) -> None:
        self._place = place
        sizes = [parameter.numel() for parameter in parameters]
        bundles = reduction_buckets(sizes, owners, ZERO2_BUCKET_ELEMENTS)
        self._buckets = [
            Bucket([parameters[at] for at in bundle], owners[bundle[0]]) for bundle in bundles
        ]
        self._sent = 0
        self._under_way: tuple[Bucket, Tensor, dist.Work] | None = None
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                hook = self._arrival(bucket)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Waits for the last reduction, after the micro-batch's backward."""
        self._wait()
        assert self._sent == len(self._buckets), "a parameter took no part in the loss"
        self._sent = 0

    def hand_over(self) -> None:
        """Sets the step's gradients on the parameters that this rank owns."""
        for bucket in self._buckets:
            if bucket.mean is not None:
                parts = parts_of(bucket.mean, bucket.parameters)
                for parameter, part in zip(bucket.parameters, parts, strict=True):
                    parameter.grad = part
                bucket.mean = None

    def _arrival(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            bucket.missing -= 1
            while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
                self._send(self._buckets[self._sent])

        return arrived

    def _send(self, bucket: Bucket) -> None:
        gradients = bucket.take_gradients().div_(self._place.world_size)
        self._wait()
        work = dist.reduce(gradients, dst=bucket.owner, async_op=True)
        self._under_way = bucket, gradients, work
        self._sent += 1

    def _wait(self) -> None:
        """Frees what was sent to another rank, keeps what was sent to this one."""
        if self._under_way is None:
            return
        bucket, gradients, work = self._under_way
        self._under_way = None
        work.wait()
        if bucket.owner != self._place.rank:
            return
        if bucket.mean is None:
            bucket.mean = gradients
        else:
            bucket.mean.add_(gradients)
