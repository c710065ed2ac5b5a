"""The models and optimizers that take part in training, and what is reported of them.

Nothing is kept alive, and apart from `parameters()` and `modules()`, which a script may override,
only torch's own code is called.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.nn import Module
from torch.optim import Optimizer

from dpwatch.probe.steps.tensors import no_torch_function
from dpwatch.probe.steps.updates import ParameterPlace, places
from dpwatch.wire.messages import DeviceInfo

MOST_MODULES = 4096
"""Modules of a model that are searched for one of torch's wrappers."""

_T = TypeVar("_T")


class Live(Generic[_T]):
    """A weak set without callbacks: Python's would run on the script's thread when an item dies."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[_T]] = {}

    def __contains__(self, thing: _T) -> bool:
        ref = self._refs.get(id(thing))
        return ref is not None and ref() is thing

    def add(self, thing: _T) -> None:
        """Adds a weak reference, and drops those that have died."""
        if len(self._refs) & (len(self._refs) - 1) == 0:
            self._refs = {key: ref for key, ref in self._refs.items() if ref() is not None}
        self._refs[id(thing)] = weakref.ref(thing)

    def __iter__(self) -> Iterator[_T]:
        return iter([thing for ref in list(self._refs.values()) if (thing := ref()) is not None])


class Models:
    """Models and optimizers seen so far.

    Attributes:
        all: Outermost modules with parameters that were called with gradients on.
        optimizers: Optimizers that have stepped.
        params: Number of elements in the parameters of all trained models, None before the first or
            if a model does not say.
        param_bytes: Their size.
        wrapper: Strategy that one of the models is wrapped for, "" as long as none is.
    """

    def __init__(self) -> None:
        self.all: Live[Module] = Live()
        self.optimizers: Live[Optimizer] = Live()
        self.params: int | None = None
        self.param_bytes: int | None = None
        self.wrapper = ""
        self._trained: Live[Module] = Live()
        self._bare: Live[Module] = Live()
        self._recount = False

    def is_trained(self, module: Module) -> bool:
        """Whether an outermost module has parameters that get gradients."""
        if module in self._trained:
            return True
        return False if module in self.all or module in self._bare else self._meet(module)

    def _meet(self, module: Module) -> bool:
        with no_torch_function():
            needs = [p.requires_grad for p in module.parameters()]
        if not needs:
            self._bare.add(module)
            return False
        self.all.add(module)
        if any(needs):  # a frozen model is a teacher or a reference, not trained
            self._trained.add(module)
            self.wrapper = self.wrapper or strategy_of(module)
            self._recount = True  # at the step's end, when lazy parameters have a shape
        return any(needs)

    def add_optimizer(self, optimizer: Optimizer) -> None:
        """An optimizer steps."""
        if optimizer not in self.optimizers:
            self.optimizers.add(optimizer)
            self.wrapper = self.wrapper or _SHARDED_OPTIMIZERS.get(type(optimizer).__name__, "")

    def places(self) -> Iterator[ParameterPlace]:
        """Locations of parameters that may be trained."""
        return places(self.optimizers, self._trained)

    def first_device(self) -> DeviceInfo | None:
        """The device of the first trained model."""
        with no_torch_function():
            for model in self._trained:
                for parameter in islice(model.parameters(), 1):
                    return device_of(parameter)
        return None

    def is_on_cuda(self) -> bool:
        """Whether a trained model is on a CUDA device."""
        with no_torch_function():
            return any(p.is_cuda for m in self._trained for p in islice(m.parameters(), 1))

    def count(self) -> bool:
        """Counts the parameters if a model is new. Returns: whether it did."""
        if not self._recount:
            return False
        self._recount = False
        with no_torch_function():
            found = {id(p): p for model in self._trained for p in model.parameters()}
            sizes = [(elements_of(p), p.element_size()) for p in found.values()]
        if not sizes:
            return False
        known = [(count, size) for count, size in sizes if count is not None]
        whole = len(known) == len(sizes)
        self.params = sum(count for count, _ in known) if whole else None
        self.param_bytes = sum(count * size for count, size in known) if whole else None
        return True


_WRAPPERS = {
    "DistributedDataParallel": "ddp",
    "FullyShardedDataParallel": "fsdp1",
    "FSDPModule": "fsdp",
}

_SHARDED_OPTIMIZERS = {"ZeroRedundancyOptimizer": "zero1"}

_DEEPSPEED = ("ddp", "zero1", "zero2", "zero3")
"""By its ZeRO stage."""


def strategy_of(module: Module) -> str:
    """The strategy that a model, or a module inside it, is wrapped for; "" if none is.

    Classes are matched by name, since importing them would slow down scripts that do not use them.
    `nn.DataParallel` counts with two or more devices; with fewer it does nothing.
    """
    for each in islice(module.modules(), MOST_MODULES):
        names = [kind.__name__ for kind in type(each).__mro__]
        if "DataParallel" in names and len(getattr(each, "device_ids", ())) > 1:
            return "dp"
        if "DeepSpeedEngine" in names:
            return _deepspeed(each)
        wrapped = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), "")
        if wrapped:
            return "hsdp" if wrapped == "fsdp" and _is_hybrid(each) else wrapped
    return ""


def _deepspeed(engine: Any) -> str:
    stage = getattr(engine, "zero_optimization_stage", None)
    number = stage() if callable(stage) else None
    if not isinstance(number, int) or not 0 <= number < len(_DEEPSPEED):
        return ""
    return _DEEPSPEED[number]


def _is_hybrid(module: Module) -> bool:
    """Whether parameters are sharded within groups and replicated across them."""
    for parameter in islice(module.parameters(), 1):
        names = [type(each).__name__ for each in getattr(parameter, "placements", ())]
        return "Replicate" in names and any(name.endswith("Shard") for name in names)
    return False


def elements_of(parameter: torch.Tensor) -> int | None:
    """Number of elements of a whole parameter, even if this rank holds a shard or nothing of it.

    None if its memory was freed and its size is unknown.
    """
    # FSDP1's flat parameter is a padded shard that records its full size. DeepSpeed's ZeRO-3
    # empties it outside of forward and records its size. A DTensor reports its full size itself.
    whole: torch.Size | None = getattr(parameter, "_unpadded_unsharded_size", None)
    if whole is not None:
        return whole.numel()
    noted = getattr(parameter, "ds_numel", None)
    if type(noted) is int:
        return noted
    return parameter.numel() or None


def device_of(parameter: torch.Tensor) -> DeviceInfo:
    """The device of a parameter."""
    device = parameter.device
    if device.type != "cuda":
        return DeviceInfo(device.type, "cpu")
    traits = torch.cuda.get_device_properties(device)
    return DeviceInfo(str(device), "cuda", traits.total_memory, traits.name)
