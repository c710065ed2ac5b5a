"""What the memory ledger knows of: storages, events, the lane a thread is in, what an op does."""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Any

import torch

Storage = torch.UntypedStorage

OUT = -1
"""Stands for the argument `out` where an argument's position is asked for."""

# What some ops take or fill tells what it is: gathered parameters (in tensors that FSDP allocated
# long before, and grows by `resize_`), or gradients copied together to be reduced.
_TAGS = {
    "c10d::_allgather_base_": (0, "gathered"),
    "c10d::allgather_into_tensor_coalesced_": (0, "gathered"),
    "fsdp::split_with_sizes_copy": (OUT, "gathered"),
    "c10d::_reduce_scatter_base_": (1, "buffers"),
    "c10d::reduce_": (0, "buffers"),
}

_RESIZES = frozenset({"aten::resize_", "aten::set_", "aten::resize_as_"})


class Entry:
    """One followed storage.

    Attributes:
        device: Index of the device that owns it.
        nbytes: Its size now.
        category: Once known for sure, else None (`account` then goes by its life).
        in_backward: Allocated while autograd ran.
        carried: It was there before the sampled step began.
        bucket: A gradient bucket of DDP's reducer.
        ref: Weak reference to the storage, None once it is gone.
    """

    __slots__ = ("bucket", "carried", "category", "device", "in_backward", "nbytes", "ref")

    def __init__(self, device: int, nbytes: int, *, in_backward: bool) -> None:
        self.device = device
        self.nbytes = nbytes
        self.category: str | None = None
        self.in_backward = in_backward
        self.carried = False
        self.bucket = False
        self.ref: StorageRef | None = None


class StorageRef(weakref.ref[Storage]):
    """Weak reference to a storage that brings its entry along to the callback."""

    __slots__ = ("entry", "key")

    entry: Entry
    key: int


class BackwardMark:
    """Event: autograd begins (or has ended) running on a device's thread."""

    __slots__ = ("begins", "device")

    def __init__(self, device: int, *, begins: bool) -> None:
        self.device = device
        self.begins = begins


Event = tuple[Entry | BackwardMark, int]
"""An entry and the bytes it grew by (negative: shrank, was freed), or a mark and 0."""


class Lane(threading.local):
    """What the calling thread works for."""

    device = 0
    graph_task = -1
    pushed = False

    def __init__(self) -> None:
        self.outer: list[tuple[int, bool]] = []


class Owner:
    """Context manager: what its thread allocates meanwhile belongs to a device."""

    __slots__ = ("_before", "_device", "_lane")

    def __init__(self, lane: Lane, device: int) -> None:
        self._lane = lane
        self._device = device
        self._before = 0

    def __enter__(self) -> None:
        self._before = self._lane.device
        self._lane.device = self._device

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lane.device = self._before


class Plan:
    """What to look at after an op."""

    __slots__ = ("allocates", "empty", "resizes", "tags")

    def __init__(self, func: Any) -> None:
        name = func._schema.name
        # Views, in-place and out= ops return what they were given; so do all collectives, though
        # their schemas don't say so.
        returns_new = any(value.alias_info is None for value in func._schema.returns)
        self.allocates = returns_new and not name.startswith("c10d::")
        self.empty = name == "aten::empty"
        self.resizes = name in _RESIZES
        self.tags = _TAGS.get(name)


def only_shapes() -> bool:
    """Whether a `FakeTensorMode` is on (DTensor works out its shardings so): nothing is real then.

    That mode comes after those of `TorchDispatchMode`s like ours, which must let it have the op.
    """
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return fake is not None
