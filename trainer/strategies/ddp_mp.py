"""DDP over a model that is split on two devices: model parallel inside data parallel.

With N devices there are N/2 ranks of two devices each; DataParallel could not do this, since
it copies a whole model to every device. The rank's device 0 holds the embeddings and the first half
of the blocks, P₀ bytes of parameters; device 1 the other blocks, last norm and head, P₁. Each step:

1. Device 0 computes its half of the rank's samples, and copies what the next block takes
   (`activation`: batch · time · width floats) to device 1.
2. Device 1 computes the rest, and the loss. Device 0 has nothing to do.
3. Backward begins on device 1. Each half has its own reducer, which all-reduces its gradients in
   buckets over the ranks as they become ready, during backward.
4. At the cut the activation's gradient (`activation_grad`, of the same size) is copied to device 0,
   where backward continues; device 1's all-reduces overlap with it.
5. Each device updates its half.

With gradient accumulation each micro-batch crosses the cut both ways, and only the last one is
all-reduced. Without a pipeline, two devices save no time: one of them is always idle.

Device d holds parameters P_d, gradients P_d, Adam's moments 2P_d, buckets P_d and its blocks'
activations of the rank's whole batch. A rank hands P₀ + P₁ to all-reduce each step, device d its
P_d. With two devices there is one rank, and all-reduce has nothing to send.

On CUDA DDP wraps the whole model (`device_ids=None`), and its reducer keeps each device's gradients
in buckets of their own. Virtual devices are all `cpu` to torch; so there each half has its own DDP,
which does the same. One thread drives both devices, and changes lanes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import LanguageModel, build_model, next_token_loss
from ..rank_place import RankPlace
from ..virtual import copy_to
from .base import ModuleStep, Strategy, autocast, make_optimizer
from .ddp import DdpStep
from .servers import JointUpdate


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model in two halves; the worker has already created the process group."""
    model = build_model(config)
    if place.virtual:
        return TwoVirtualDevices(model, config, place, probe)
    first, second = place.devices
    halves = TwoHalves(
        FirstHalf(model).to(first), SecondHalf(model).to(second), lambda x: x.to(second)
    )
    optimizer = make_optimizer(model.parameters(), config)
    return DdpStep(model, DistributedDataParallel(halves), optimizer, config, place, probe)


class FirstHalf(nn.Module):
    """Embeddings and the first half of the blocks; with an odd number of blocks, one more."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.token = model.token
        self.position = model.position
        self.blocks = model.blocks[: (len(model.blocks) + 1) // 2]

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps characters `[batch, time]` to `[batch, time, width]`."""
        x: Tensor = self.blocks(self.token(tokens) + self.position[: tokens.shape[1]])
        return x


class SecondHalf(nn.Module):
    """The other blocks, the last norm and the head."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.blocks = model.blocks[(len(model.blocks) + 1) // 2 :]
        self.norm = model.norm
        self.head = model.head

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, time, width]` to logits `[batch, time, vocabulary]`."""
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class TwoHalves(nn.Module):
    """Both halves on their devices.

    Args:
        first: The first half.
        second: The second half.
        carry: Moves an activation from the first one's device to the second's.
        on_second: Returns a context manager in which the thread works for the second device.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        carry: Callable[[Tensor], Tensor],
        on_second: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self._carry = carry
        self._on_second = on_second

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps characters on the first device to logits on the second."""
        x = self.first(tokens)
        with self._on_second():
            x = self._carry(x)
            logits: Tensor = self.second(x)
        return logits


class Crossing:
    """The cut between two virtual devices: copies what crosses it and switches the thread's lane.

    In backward autograd calls it: on the CPU it runs on the thread that called it.
    """

    def __init__(self, probe: ProbeLike) -> None:
        self._probe = probe
        self._second = ExitStack()

    def __call__(self, x: Tensor) -> Tensor:
        """Copies an activation to device 1; its gradient will come back."""
        crossed = cast("Tensor", _Cross.apply(x, self))  # type: ignore[no-untyped-call]
        return crossed

    def forth(self, x: Tensor) -> Tensor:
        """Copies an activation to device 1."""
        return copy_to(self._probe, [x], "activation", 0, 1)[0]

    def back(self, gradient: Tensor) -> Tensor:
        """Copies its gradient to device 0, which the thread works for again."""
        crossed = copy_to(self._probe, [gradient], "activation_grad", 1, 0)[0]
        self.end_backward()
        return crossed

    @contextmanager
    def on_second(self, phase: str = "forward") -> Iterator[None]:
        """While entered, the thread works for device 1."""
        with self._probe.lane(1), self._probe.phase(phase):
            yield

    def begin_backward(self) -> None:
        """The thread works for device 1, until the cut or `end_backward`."""
        self._second.enter_context(self.on_second("backward"))

    def end_backward(self) -> None:
        """The thread works for device 0 again, if it did not."""
        self._second.close()


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, crossing: Crossing) -> Tensor:
        ctx.crossing = crossing
        return crossing.forth(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.crossing.back(gradient), None


class TwoVirtualDevices(ModuleStep):
    """The step on two virtual devices, which one thread works for alternately."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, place: RankPlace, probe: ProbeLike
    ) -> None:
        halves = (FirstHalf(model), SecondHalf(model))
        with probe.owns(1):
            for parameter in halves[1].parameters():
                parameter.data = parameter.data.clone()
        optimizers, self._reducers = {}, []
        for device, half in enumerate(halves):
            optimizers[device] = make_optimizer(half.parameters(), config)
            probe.holds(device, half, optimizers[device])
            with probe.owns(device):
                self._reducers.append(DistributedDataParallel(half))
        crossing = self._crossing = Crossing(probe)
        wrapped = TwoHalves(self._reducers[0], self._reducers[1], crossing, crossing.on_second)
        optimizer = JointUpdate(optimizers, self._in_turn)
        super().__init__(model, wrapped, optimizer, config, place, probe)

    def _in_turn(self, job: Callable[[int], object], devices: Sequence[int]) -> None:
        for device in devices:
            with self._probe.lane(device):
                job(device)

    def _micro_step(self, tokens: Tensor, *, last: bool) -> Tensor:
        with self.communicating(last=last):
            with autocast(self._config, self._place):
                loss = self._loss(self.wrapped(tokens[:, :-1]), tokens[:, 1:])
            root = loss / self._config.grad_accum
            # Device 1 works from the loss back to the cut.
            root.register_hook(lambda _: self._crossing.begin_backward())  # type: ignore[no-untyped-call]
            try:
                torch.autograd.backward(root)
            finally:
                self._crossing.end_backward()
        return loss.detach()

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        with self._crossing.on_second():
            return next_token_loss(logits, targets)

    def communicating(self, *, last: bool) -> AbstractContextManager[object]:
        """See `ModuleStep`: both reducers defer it."""
        put_off = ExitStack()
        if not last:
            for reducer in self._reducers:
                put_off.enter_context(reducer.no_sync())
        return put_off
