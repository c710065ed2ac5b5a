"""What steps need to know of models, optimizers and losses, without keeping any of them alive."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch.nn import Module

from dpwatch.wire.messages import DeviceInfo

_C_FLOATS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}

_T = TypeVar("_T")


class Live(Generic[_T]):
    """Things to be found again as long as somebody else keeps them; looked up when iterated."""

    def __init__(self) -> None:
        self.refs: dict[int, weakref.ref[_T]] = {}

    def add(self, thing: _T) -> None:
        """Keeps a weak reference to it."""
        key, refs = id(thing), self.refs
        refs[key] = weakref.ref(thing, lambda _: refs.pop(key, None))

    def __iter__(self) -> Iterator[_T]:
        return iter([thing for ref in list(self.refs.values()) if (thing := ref()) is not None])


def scalar_of(root: torch.Tensor) -> float | None:
    """The value of a one-element tensor in host memory, None for any other.

    Read from memory where C knows the type: an `item()` of ours would be an operation among the
    user's own, seen by their dispatch modes. On an accelerator, reading would wait for it.
    """
    if not root.is_cpu or not root.is_floating_point() or root.numel() != 1:
        return None
    with contextlib.suppress(RuntimeError):  # inside a functorch transform
        ctype = _C_FLOATS.get(root.dtype)
        if ctype is None or root.is_neg():
            return root.item()
        if address := root.data_ptr():
            return float(ctype.from_address(address).value)
    return None


_WRAPPERS = {
    "DistributedDataParallel": "ddp",
    "FullyShardedDataParallel": "fsdp1",
    "FSDPModule": "fsdp",
}


def elements_of(parameter: torch.Tensor) -> int:
    """Elements of a parameter as a whole, where this rank holds but its shard of it too."""
    # A DTensor says so itself; FSDP1's flat parameter is its shard, padded, and remembers.
    whole: torch.Size | None = getattr(parameter, "_unpadded_unsharded_size", None)
    return parameter.numel() if whole is None else whole.numel()


def strategy_of(module: Module) -> str:
    """The strategy a model is wrapped for, "" if it is none of torch's wrappers.

    By name, since importing these classes would cost a script that does not use them.
    `nn.DataParallel` counts with two or more devices; with fewer it passes through silently.
    """
    names = [each.__name__ for each in type(module).__mro__]
    if "DataParallel" in names:
        return "dp" if len(getattr(module, "device_ids", ())) > 1 else ""
    return next((_WRAPPERS[name] for name in names if name in _WRAPPERS), "")


def device_of(parameter: torch.Tensor) -> DeviceInfo:
    """The device a model lies on."""
    device = parameter.device
    if device.type != "cuda":
        return DeviceInfo(device.type, "cpu")
    traits = torch.cuda.get_device_properties(device)
    return DeviceInfo(str(device), "cuda", traits.total_memory, traits.name)
