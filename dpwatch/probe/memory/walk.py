"""Finds the storages that training keeps from one step to the next.

Parameters, gradients, optimizer state and module buffers are reachable from the models and
optimizers, so their bytes are exact without tracking a single allocation. Everything is counted by
untyped storage: views and tied weights count once.

The walk runs no code of the script's: it reads instance dictionaries instead of calling
`parameters()` or properties, uses torch's own accessors instead of a subclass's, and hides from
`__torch_function__` modes (`no_torch_function`). Nothing it reads goes through the dispatcher,
materializes lazily cloned memory, or warns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MemberDescriptorType
from typing import Any

import torch

from dpwatch.wire.messages import ByCategory

Category = str
"""One of `wire.messages.CATEGORIES`."""

Kept = tuple[Category, "torch.Tensor | None", "torch.Tensor | None"]
"""A category, a tensor with its own storage (None: one that cannot be counted), and the parameter
it belongs to, as the model has it."""

DEEPEST = 6
"""Maximum nesting of lists, dictionaries and wrapper tensors."""

_Base: Any = torch.Tensor.__mro__[1]
_grad = _Base.grad.__get__
_is_leaf = _Base.is_leaf.__get__
_requires_grad = _Base.requires_grad.__get__
_retains_grad = _Base.retains_grad.__get__
_storage = _Base.untyped_storage
_nbytes = _Base.nbytes.__get__
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_no_dispatch = torch._C._disabled_torch_dispatch_impl
_address = getattr(torch._C, "_data_address", None)


def no_torch_function() -> AbstractContextManager[None]:
    """Hides what this thread reads of tensors meanwhile from function modes."""
    return torch._C.DisableTorchFunction()


class Walk:
    """Bytes that models and optimizers keep, by device and category.

    Attributes:
        inside: All modules, outermost first.
    """

    def __init__(self, optimizers: Iterable[Any], models: Iterable[torch.nn.Module]) -> None:
        self.inside = list(modules_of(models))
        self._bytes: dict[tuple[torch.device, Category], int] = {}
        self._unknown: set[Category] = set()
        with no_torch_function():
            self._count(_persistent(list(optimizers), self.inside))

    def _count(self, tensors: Iterable[Kept]) -> None:
        found, seen, storage_of = self._bytes, set(), _storage
        for category, tensor, _ in tensors:
            try:
                storage = storage_of(tensor)
            except (NotImplementedError, RuntimeError, TypeError):  # sparse, opaque, or none
                self._unknown.add(category)
                continue
            if (key := storage._cdata) not in seen:
                seen.add(key)
                place = (storage.device, category)
                found[place] = found.get(place, 0) + storage.nbytes()

    def on(self, device: torch.device) -> ByCategory:
        """Bytes on a device; all unknown if no parameter is there."""
        if (device, "params") not in self._bytes:
            return ByCategory()
        known = {
            category: self._bytes.get((device, category), 0)
            for category in ("params", "grads", "optimizer", "buffers")
            if category not in self._unknown
        }
        return ByCategory(**known)


def persistent_tensors(
    optimizers: Iterable[Any], models: Iterable[torch.nn.Module]
) -> Iterator[Kept]:
    """Yields every tensor that training keeps, with its category; parameters come first.

    A storage may appear more than once (tied weights, two optimizers over one model); its category
    is the first it appears with. Consume it while `no_torch_function` is held.

    Args:
        optimizers: Anything with `param_groups` and `state`; a wrapper such as
            `ZeroRedundancyOptimizer` (own `state` empty) is read through its `.optim`.
        models: The outermost modules.
    """
    return _persistent(list(optimizers), list(modules_of(models)))


def _persistent(optimizers: list[Any], modules: list[torch.nn.Module]) -> Iterator[Kept]:
    parts = _Parts()
    parameters = _parameters(optimizers, modules)
    for parameter in parameters:
        for part in parts.of(parameter):
            yield "params", part, None
    for parameter in parameters:
        grad = gradient_of(parameter)
        if grad is not None:
            for part in parts.of(grad):
                yield "grads", part, parameter
    for optimizer in optimizers:
        yield from _state_of(optimizer, parts)
    for module in modules:
        for buffer in _fields_of(module, "_buffers"):
            for part in parts.of(buffer):
                yield "buffers", part, None


def own_gradient_bytes(optimizers: Iterable[Any]) -> dict[torch.device, int]:
    """Bytes of the gradients that have a storage of their own, by device.

    Dropping one of these frees it. Views of a bucket do not count.
    """
    parts, found, seen = _Parts(), dict[torch.device, int](), set()
    with no_torch_function():
        for parameter in _parameters(list(optimizers), []):
            grad = gradient_of(parameter)
            for part in () if grad is None else parts.of(grad):
                if part is None or parts.dispatch(part) or not torch._C._has_storage(part):
                    continue
                storage = _storage(part)
                if storage.nbytes() == _nbytes(part) and storage._cdata not in seen:
                    seen.add(storage._cdata)
                    found[storage.device] = found.get(storage.device, 0) + storage.nbytes()
    return found


def gradient_of(parameter: torch.Tensor) -> torch.Tensor | None:
    """Its gradient, without the warning that non-leaf tensors give."""
    if _is_leaf(parameter) or _retains_grad(parameter):
        grad: torch.Tensor | None = _grad(parameter)
        return grad
    return None


def first_trained(model: torch.nn.Module) -> torch.Tensor | None:
    """The tensor that holds the memory of the first parameter that gets a gradient."""
    for module in modules_of([model]):
        for parameter in _fields_of(module, "_parameters"):
            if _requires_grad(parameter):
                return next(iter(parts_of(parameter)), None)
    return None


def place_of(tensor: torch.Tensor) -> torch.device:
    """The device of a plain tensor's storage."""
    device: torch.device = _storage(tensor).device
    return device


def modules_of(models: Iterable[torch.nn.Module]) -> Iterator[torch.nn.Module]:
    """All modules in these, each once; from torch's own registry, whatever a subclass overrides."""
    seen: set[int] = set()
    ahead = list(models)[::-1]
    while ahead:
        module = ahead.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            ahead.extend(_fields_of(module, "_modules")[::-1])


def attributes_of(thing: Any) -> Mapping[str, Any]:
    """Instance attributes as stored, bypassing any `__getattr__` or property."""
    try:
        found: Mapping[str, Any] = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return {}
    return found


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that hold its memory: itself, or those inside a wrapper (DTensor's shard)."""
    return [part for part in _Parts().of(tensor) if part is not None]


class _Parts:
    """Unwraps wrapper tensors without calling their class."""

    def __init__(self) -> None:
        self._dispatch: dict[type, bool] = {}

    def dispatch(self, tensor: torch.Tensor) -> bool:
        """Whether its class has a `__torch_dispatch__`, which may be called even for its size."""
        kind = type(tensor)
        found = self._dispatch.get(kind)
        if found is None:
            own = getattr(kind, "__torch_dispatch__", _no_dispatch)
            found = self._dispatch[kind] = own is not _no_dispatch
        return found

    def of(self, tensor: torch.Tensor, depth: int = 0) -> Sequence[torch.Tensor | None]:
        """Tensors with their own storages; `(None,)` if none is found."""
        if not self.dispatch(tensor) or (_address is not None and _address(tensor)):
            return (tensor,)
        if depth >= DEEPEST:
            return (None,)
        inner = _tensors_in([*attributes_of(tensor).values(), *_slots_of(tensor)])
        return [part for each in inner for part in self.of(each, depth + 1)] or (None,)


def _slots_of(thing: Any) -> Iterator[Any]:
    for kind in type(thing).__mro__:
        for member in vars(kind).values():
            if type(member) is MemberDescriptorType:
                try:
                    yield member.__get__(thing)
                except AttributeError:  # not set
                    continue


def _parameters(optimizers: list[Any], modules: list[torch.nn.Module]) -> list[torch.Tensor]:
    """Parameters of all models, then those that only an optimizer has, each once."""
    found = {id(p): p for module in modules for p in _fields_of(module, "_parameters")}
    for optimizer in optimizers:
        for group in attributes_of(optimizer).get("param_groups", ()):
            found.update((id(p), p) for p in group["params"] if id(p) not in found)
    return list(found.values())


def _fields_of(module: torch.nn.Module, name: str) -> list[Any]:
    """Values of one of a module's registries, without None."""
    registry = attributes_of(module).get(name)
    if not registry:
        return []
    if issubclass(type(registry), dict):
        values = list(dict.values(registry))
    elif type(registry).__module__.startswith("torch."):  # TorchScript's
        values = list(registry.values())
    else:
        return []
    return [value for value in values if value is not None]


def _state_of(optimizer: Any, parts: _Parts) -> Iterator[Kept]:
    attributes = attributes_of(optimizer)
    wrapped = attributes.get("optim")
    inner = None if wrapped is None else attributes_of(wrapped).get("state")
    state: Any = attributes.get("state") if inner is None else inner
    if not issubclass(type(state), dict):
        yield "optimizer", None, None
        return
    for parameter, kept in list(dict.items(state)):
        for tensor in _tensors_in(kept):
            for part in parts.of(tensor):
                yield "optimizer", part, parameter


def _tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in a value, through nested lists and dictionaries."""
    found: list[torch.Tensor] = []
    _collect(value, found, 0)
    return found


def _collect(value: Any, found: list[torch.Tensor], depth: int) -> None:
    kind = type(value)
    if kind in _PLAIN or issubclass(kind, torch.Tensor):
        found.append(value)
    elif depth < DEEPEST and issubclass(kind, dict | list | tuple):
        for inner in _elements_of(value, kind):
            if type(inner) is torch.Tensor:  # the common case, without another call
                found.append(inner)
            else:
                _collect(inner, found, depth + 1)


def _elements_of(value: Any, kind: type) -> Iterable[Any]:
    """Elements by the built-in type's own methods, whatever a subclass overrides."""
    if issubclass(kind, dict):
        return list(dict.values(value))
    return list(list.__iter__(value) if issubclass(kind, list) else tuple.__iter__(value))
