"""Data of the memory ledger: storages, events, a thread's lane, and what each op does."""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Any

import torch

Storage = torch.UntypedStorage

OUT = -1
"""Used as a position to refer to the argument `out`."""

# Some ops reveal the category of their arguments: gathered parameters (in tensors that FSDP
# allocated long before and grows by `resize_`), or gradients packed for a reduction.
_TAGS = {
    "c10d::_allgather_base_": (0, "gathered"),
    "c10d::allgather_into_tensor_coalesced_": (0, "gathered"),
    "fsdp::split_with_sizes_copy": (OUT, "gathered"),
    "c10d::_reduce_scatter_base_": (1, "buffers"),
    "c10d::reduce_": (0, "buffers"),
}

_RESIZES = frozenset({"aten::resize_", "aten::set_", "aten::resize_as_"})


class Entry:
    """One tracked storage.

    Attributes:
        device: Index of the device that owns it.
        nbytes: Its current size.
        category: Its category once known for sure, else None (`account` then derives it from its
            life).
        in_backward: Allocated while autograd ran.
        carried: It existed before the sampled step began.
        bucket: A gradient bucket of DDP's reducer.
        ref: Weak reference to the storage, None once it is freed.
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
    """Weak reference to a storage that carries its entry to the callback."""

    __slots__ = ("entry", "key")

    entry: Entry
    key: int


class BackwardMark:
    """Event: autograd starts (or has stopped) running on a device's thread."""

    __slots__ = ("begins", "device")

    def __init__(self, device: int, *, begins: bool) -> None:
        self.device = device
        self.begins = begins


Event = tuple[Entry | BackwardMark, int]
"""An entry and the bytes it grew by (negative: shrank or was freed), or a mark and 0."""


class ThreadDevice(threading.local):
    """The device that the calling thread works for."""

    device = 0
    graph_task = -1
    pushed = False

    def __init__(self) -> None:
        self.outer: list[tuple[int, bool]] = []


class Owner:
    """Context manager: what its thread allocates meanwhile belongs to a device."""

    __slots__ = ("_before", "_device", "_lane")

    def __init__(self, lane: ThreadDevice, device: int) -> None:
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
    """What to check after an op."""

    __slots__ = ("allocates", "empty", "resizes", "tags")

    def __init__(self, func: Any) -> None:
        name = func._schema.name
        # Views, in-place and out= ops return their arguments; so do all collectives, although
        # their schemas do not say so.
        returns_new = any(value.alias_info is None for value in func._schema.returns)
        self.allocates = returns_new and not name.startswith("c10d::")
        self.empty = name == "aten::empty"
        self.resizes = name in _RESIZES
        self.tags = _TAGS.get(name)


def only_shapes() -> bool:
    """Whether a `FakeTensorMode` is on (DTensor propagates shardings with it), so nothing is real.

    That mode comes after `TorchDispatchMode`s like this one, which must pass the op on to it.
    """
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return fake is not None
