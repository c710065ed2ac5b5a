"""Finds the storages training keeps from one step to the next: what can be counted by looking.

Parameters, gradients, optimizer state and module buffers are reachable from the models and
optimizers, so their bytes are exact without following a single allocation. Everything is counted
by untyped storage: views and tied weights count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from dpwatch.wire.messages import ByCategory

Category = str
"""One of `wire.messages.CATEGORIES`."""


class Kept(NamedTuple):
    """A local tensor (a DTensor's own shard), its category, and the parameter it belongs to."""

    category: Category
    tensor: torch.Tensor
    of: torch.Tensor | None = None


def persistent_tensors(
    optimizers: Iterable[Any], models: Iterable[torch.nn.Module]
) -> Iterator[Kept]:
    """Yields every tensor that training keeps, with its category; parameters come first.

    A storage may come more than once (tied weights, two optimizers over one model); the first
    category it comes with is its own.

    Args:
        optimizers: Anything with `param_groups` and `state`; a wrapper such as
            `ZeroRedundancyOptimizer` (own `state` empty) is read through its `.optim`.
        models: The outermost modules.
    """
    optimizers, models = list(optimizers), list(models)
    parameters = list(_parameters(optimizers, models))
    for parameter in parameters:
        held = local(parameter)
        yield Kept("gathered" if _dropped(held) else "params", held)
    for parameter in parameters:
        if parameter.grad is not None:
            yield Kept("grads", local(parameter.grad), local(parameter))
    for optimizer in optimizers:
        state = getattr(optimizer, "optim", optimizer).state
        for parameter, kept in list(state.items()):
            of = local(parameter) if isinstance(parameter, torch.Tensor) else None
            for tensor in _tensors_in(kept):
                yield Kept("optimizer", local(tensor), of)
    for model in models:
        for buffer in model.buffers():
            yield Kept("buffers", local(buffer))


def bytes_by_category(tensors: Iterable[Kept], device: torch.device) -> dict[Category, int]:
    """Sums bytes of distinct storages on one device."""
    totals: dict[Category, int] = {}
    seen: set[int] = set()
    for category, tensor, _ in tensors:
        if tensor.device != device:
            continue
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            totals[category] = totals.get(category, 0) + storage.nbytes()
    return totals


def kept_by_category(
    optimizers: Iterable[Any], models: Iterable[torch.nn.Module], device: torch.device
) -> tuple[ByCategory, ByCategory]:
    """What walking tells of a device whose other bytes nobody followed.

    Returns:
        Categories now, and at the peak: parameters and optimizer state are there at any moment,
        which gradients were is unknown. All None for a device on which no parameter lies.
    """
    walked = bytes_by_category(persistent_tensors(optimizers, models), device)
    if "params" not in walked:
        return ByCategory(), ByCategory()
    params, optimizer = walked["params"], walked.get("optimizer", 0)
    now = ByCategory(params=params, grads=walked.get("grads", 0), optimizer=optimizer)
    return now, ByCategory(params=params, optimizer=optimizer)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor this rank holds: a DTensor's shard, else the tensor itself."""
    shard: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return shard


def _dropped(tensor: torch.Tensor) -> bool:
    """Whether its memory is given back: a sharded parameter that is gathered when it is needed."""
    return tensor.is_cpu and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def _parameters(
    optimizers: Sequence[Any], models: Sequence[torch.nn.Module]
) -> Iterator[torch.Tensor]:
    """Parameters of all models, then what only an optimizer knows of, each once."""
    seen: set[int] = set()
    in_models = (parameter for model in models for parameter in model.parameters())
    in_groups = (
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    for source in (in_models, in_groups):
        for parameter in source:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors_in(inner)
