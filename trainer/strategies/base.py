"""The strategy interface, and the step that most strategies share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import next_token_loss
from ..rank_place import RankPlace

State = dict[str, Any]
"""Plain tensors, numbers, strings and containers of them, which `torch.load` accepts safely."""


class Strategy(Protocol):
    """One scheme of data parallelism, as one process runs it."""

    def step(self, tokens: Tensor) -> Tensor:
        """Trains one step.

        Args:
            tokens: This process's part of the global batch, `[batch, seq_len + 1]`, in host memory.

        Returns:
            The mean loss over those samples, detached and without waiting for a device.
        """

    def parameters(self) -> dict[str, Tensor]:
        """The whole model's parameters, detached, by the plain model's names."""

    def state(self) -> State:
        """This process's part of a checkpoint, from which `load` resumes bit-identically."""

    def load(self, state: State) -> None:
        """Resumes from a `state` of the same strategy, configuration and rank."""

    def close(self) -> None:
        """Ends what the strategy has started."""


def make_optimizer(parameters: Iterable[Tensor], config: TrainConfig) -> Optimizer:
    """The optimizer that the configuration names."""
    kind, options = optimizer_kind(config)
    return kind(parameters, **options)


def optimizer_kind(config: TrainConfig) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer's class and options, for wrappers that create it themselves."""
    kinds: dict[str, type[Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return kinds[config.optimizer], {"lr": config.learning_rate}


def autocast(config: TrainConfig, place: RankPlace) -> AbstractContextManager[object]:
    """Runs forward and loss in the configured precision, on this thread."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(place.device.type, torch.bfloat16)


class ModuleStep:
    """The usual step: forward, loss, backward, optimizer; the wrapped module does the rest.

    With several micro-batches gradients accumulate. A strategy whose wrapper can defer
    communication until the last one overrides `communicating`.

    Args:
        model: The plain model, for its parameters' names.
        wrapped: The module that is called.
        optimizer: Created by `make_optimizer`, or a wrapper around it.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: Optimizer,
        config: TrainConfig,
        place: RankPlace,
        probe: ProbeLike,
    ) -> None:
        self.model = model
        self.wrapped = wrapped
        self.optimizer = optimizer
        self._config = config
        self._place = place
        self._probe = probe

    def step(self, tokens: Tensor) -> Tensor:
        """See `Strategy`."""
        self._probe.samples(len(tokens))
        self.optimizer.zero_grad(set_to_none=True)
        parts = tokens.chunk(self._config.grad_accum)
        loss = torch.stack(
            [self._micro_step(part, last=part is parts[-1]) for part in parts]
        ).mean()
        if self._place.virtual:
            self._probe.loss(loss.item())
        self.optimizer.step()
        return loss

    def _micro_step(self, tokens: Tensor, *, last: bool) -> Tensor:
        tokens = self._place.load(tokens, self._probe)
        with self.communicating(last=last):
            with self.computing():
                loss = next_token_loss(self.wrapped(tokens[:, :-1]), tokens[:, 1:])
            torch.autograd.backward(loss / self._config.grad_accum)
        return loss.detach()

    def communicating(self, *, last: bool) -> AbstractContextManager[object]:
        """Wraps a micro-batch; a wrapper that can defer communication does so until the last."""
        return nullcontext()

    def computing(self) -> AbstractContextManager[object]:
        """Wraps forward and loss: sets the precision, unless the wrapper does that."""
        return autocast(self._config, self._place)

    def parameters(self) -> dict[str, Tensor]:
        """See `Strategy`."""
        return {name: value.detach() for name, value in self.model.named_parameters()}

    def state(self) -> State:
        """See `Strategy`."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: State) -> None:
        """See `Strategy`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """See `Strategy`."""
