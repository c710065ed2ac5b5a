"""ZeRO stage 3: no rank has the whole model; parameters are gathered per unit, used and freed.

The units are the root (embeddings, last norm, head), then each block. At start, a unit's parameters
are flattened and padded with zeros to a multiple of N, and each rank keeps an N-th of that, its
shard; of the parameters only the shapes are left. Then each step, on every rank:

1. Forward: before a unit computes, its shards are all-gathered into memory that its parameters are
   views of, while gathering the next block begins. After a block has computed, that memory is
   freed. The root stays: its head comes last in forward and first in backward.
2. Backward, through the blocks in reverse: each is gathered again before it computes, and the one
   before it meanwhile. Gradients are collected flat; when a unit's are complete, they are
   reduce-scattered (one unit at a time, during backward), summed over the ranks and divided by
   their number, so that a rank is left with its shard's. Then the unit's parameters are freed.
   With gradient accumulation every micro-batch does 1 and 2, and the shards' gradients add up.
3. The optimizer's update of the shards. Nothing is sent: the next gather brings the new values.

Each rank holds, in units of the parameters' bytes P (padding included): parameters P/N, gradients
P/N and Adam's moments 2P/N; temporarily the root and two blocks, gathered, and as much of their
gradients (for a model of two blocks that is everything: deep models gain). Per micro-batch it
passes P/N to all-gathers in forward, P/N without the root's part in backward, and P to
reduce-scatters: a ring sends 3 (N − 1)/N · P, less the root's second gather.

With `bf16-mixed` autocast casts the gathered parameters, and the casts of a block live until its
backward (with activation checkpointing, until the end of forward); `fsdp` gathers in bfloat16.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020,
sections 5.3 and 7.2.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import LanguageModel, build_model
from ..rank_place import RankPlace
from .base import ModuleStep, State, Strategy, make_optimizer
from .flat import lay_out, parts_of

# torch 2.13 renames both, and warns of the old names.
_NEW_NAMES = hasattr(dist, "all_gather_single")
_all_gather = dist.all_gather_single if _NEW_NAMES else dist.all_gather_into_tensor
_reduce_scatter = dist.reduce_scatter_single if _NEW_NAMES else dist.reduce_scatter_tensor


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """Builds the whole model once, identically on every rank, and keeps a shard of it."""
    model = build_model(config).to(place.device)
    units = shard(model, place)
    optimizer = make_optimizer([unit.shard for unit in units], config)
    return Zero3Step(model, units, optimizer, config, place, probe)


class Zero3Step(ModuleStep):
    """The units' hooks do the work; the optimizer has the shards."""

    def __init__(
        self,
        model: LanguageModel,
        units: Sequence[Unit],
        optimizer: Optimizer,
        config: TrainConfig,
        place: RankPlace,
        probe: ProbeLike,
    ) -> None:
        super().__init__(model, model, optimizer, config, place, probe)
        self._units = units

    @contextmanager
    def communicating(self, *, last: bool) -> Iterator[None]:
        """See `ModuleStep`."""
        yield
        with self._probe.phase("backward"):
            for unit in self._units:
                unit.finish_reduction()

    def parameters(self) -> dict[str, Tensor]:
        """See `Strategy`; all ranks must call it, as it gathers."""
        for unit in self._units:
            unit.gather()
        whole = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        for unit in self._units:
            unit.drop()
        return whole

    def state(self) -> State:
        """See `Strategy`; only the rank's shards."""
        shards = [unit.shard.detach() for unit in self._units]
        return {"shards": shards, "optimizer": self.optimizer.state_dict()}

    def load(self, state: State) -> None:
        """See `Strategy`."""
        for unit, kept in zip(self._units, state["shards"], strict=True):
            unit.shard.detach().copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])


def shard(model: LanguageModel, place: RankPlace) -> list[Unit]:
    """Divides the model into units, in the order of forward, that work by hooks."""
    blocks = list(model.blocks)
    in_blocks = {parameter for block in blocks for parameter in block.parameters()}
    root = [parameter for parameter in model.parameters() if parameter not in in_blocks]
    units = [Unit(root, place), *(Unit(list(block.parameters()), place) for block in blocks)]
    for unit, following in pairwise(units):
        unit.following, following.preceding = following, unit
    for module, unit in zip((model, *blocks), units, strict=True):
        module.register_forward_pre_hook(unit.before_forward)
        if module is not model:
            module.register_forward_hook(unit.after_forward)
    return units


class Unit:
    """Parameters that are gathered together, and whose gradients are reduced together.

    Attributes:
        shard: This rank's N-th of them, flat; what the optimizer updates.
        preceding: The unit before it in forward.
        following: The unit after it in forward.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], place: RankPlace) -> None:
        self.preceding: Unit | None = None
        self.following: Unit | None = None
        self._parameters = parameters
        self._ranks = place.world_size
        # The parameters are views of this from here on, whether its memory is allocated or not.
        self._whole = lay_out(parameters, multiple_of=place.world_size)
        self._nbytes = self._whole.nbytes
        self.shard = nn.Parameter(self._whole.chunk(place.world_size)[place.rank].clone())
        self._gathering: dist.Work | None = None
        self._gradients: Tensor | None = None
        self._missing: dict[Tensor, Tensor] = {}
        self._reducing: tuple[dist.Work, Tensor] | None = None
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]
        self.drop()

    # -- hooks --------------------------------------------------------------------------------

    def before_forward(self, module: nn.Module, args: object) -> None:
        """Hook: gathers this unit's parameters, and starts gathering the following one's."""
        self.gather()
        if self.following is not None:
            self.following.begin_to_gather()

    def after_forward(self, module: nn.Module, args: object, output: Tensor) -> None:
        """Hook: frees them until backward reaches the output."""
        self.drop()
        if output.requires_grad:
            output.register_hook(self._before_backward)  # type: ignore[no-untyped-call]

    def _before_backward(self, gradient: Tensor) -> None:
        self.gather()
        if self.preceding is not None:
            self.preceding.begin_to_gather()

    # -- parameters ---------------------------------------------------------------------------

    def begin_to_gather(self) -> None:
        """Allocates memory and starts an all-gather of the shards, unless that is done."""
        storage = self._whole.untyped_storage()
        if storage.nbytes() == 0:
            storage.resize_(self._nbytes)
            self._gathering = _all_gather(self._whole, self.shard.detach(), async_op=True)

    def gather(self) -> None:
        """Returns when the parameters are gathered."""
        self.begin_to_gather()
        if self._gathering is not None:
            self._gathering.wait()
            self._gathering = None

    def drop(self) -> None:
        """Frees the parameters' memory; the tensors that autograd saved are views of it too."""
        self._whole.untyped_storage().resize_(0)

    # -- gradients ----------------------------------------------------------------------------

    def _collect(self, parameter: Tensor) -> None:
        """Hook: moves a gradient to its place; after the last one, starts to reduce them all."""
        if self._gradients is None:
            self._gradients = torch.zeros_like(self._whole)
            parts = parts_of(self._gradients, self._parameters)
            self._missing = dict(zip(self._parameters, parts, strict=True))
        assert parameter.grad is not None
        self._missing.pop(parameter).copy_(parameter.grad)
        parameter.grad = None
        if not self._missing:
            self._begin_to_reduce(self._gradients)
            self._gradients = None
            self.drop()

    def _begin_to_reduce(self, gradients: Tensor) -> None:
        """Sends every rank its part of the gradients, after the previous unit's are reduced."""
        if self.following is not None:
            self.following.finish_reduction()
        mine = torch.empty_like(self.shard)
        gradients.div_(self._ranks)
        self._reducing = _reduce_scatter(mine, gradients, async_op=True), mine

    def finish_reduction(self) -> None:
        """Adds what has been reduced, if anything, to the shard's gradient."""
        assert self._gradients is None, "a parameter took no part in the loss"
        if self._reducing is None:
            return
        work, mine = self._reducing
        self._reducing = None
        work.wait()
        if self.shard.grad is None:
            self.shard.grad = mine
        else:
            self.shard.grad.add_(mine)
