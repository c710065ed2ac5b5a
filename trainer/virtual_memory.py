"""A virtual device's memory limit: exact to the byte, and enforced.

Every storage a thread allocates counts for the device the thread works for (as declared to the
probe: `lane`, `owns`), from the op that allocated it until it is freed, wherever that happens. An
allocation beyond the device's capacity raises `torch.OutOfMemoryError` in the allocating thread,
with a message like that of CUDA's allocator. What fits is computed by the very same kernels, so
limited training is bit-identical to unlimited.

A `TorchDispatchMode` at the bottom of each thread's stack sees what ops return. Unlike the probe's
own it stays active, which costs microseconds per op. It does not see what a kernel allocates and
frees internally, nor what gloo copies for itself; the probe's ledger does not either.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _python_dispatch as dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from dpwatch.probe.memory.dispatch_mode import any_unwraps
from dpwatch.probe.memory.events import Plan, Storage, only_shapes
from dpwatch.wire.messages import DeviceInfo

from .messages import DeviceMemory

_LIFTS = "aten::lift_fresh"
"""Python numbers become a tensor outside the dispatcher, except for this op."""


class Books:
    """Bytes in use and their peak, by device.

    A free may happen in a destructor, on any thread, even in the middle of `allocate`. So it is
    only appended to a queue (an atomic operation), which is drained before the sums are read.
    """

    def __init__(self, devices: Sequence[DeviceInfo]) -> None:
        self.devices = devices
        self.oom_device = ""
        self._in_use = [0] * len(devices)
        self._peak = [0] * len(devices)
        self._freed: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def allocate(self, device: int, nbytes: int) -> None:
        """Counts an allocation.

        Raises:
            torch.OutOfMemoryError: The device does not have that much left; nothing is counted.
        """
        with self._lock:
            self._apply_frees()
            total = self._in_use[device] + nbytes
            capacity = self.devices[device].capacity_bytes
            if capacity is not None and total > capacity:
                self.oom_device = self.oom_device or self.devices[device].name
                raise torch.OutOfMemoryError(self._refusal(device, nbytes, capacity))
            self._in_use[device] = total
            self._peak[device] = max(self._peak[device], total)

    def free(self, device: int, nbytes: int) -> None:
        """Counts a free, with immediate effect on all sums read later."""
        self._freed.append((device, nbytes))

    def move(self, nbytes: int, src: int, dst: int) -> None:
        """Moves bytes from one device's account to another's."""
        self.free(src, nbytes)
        self.allocate(dst, nbytes)

    def in_use(self) -> list[int]:
        """Bytes in use now, by device."""
        with self._lock:
            self._apply_frees()
            return list(self._in_use)

    def report(self) -> tuple[DeviceMemory, ...]:
        """Each device's peak so far."""
        return tuple(
            DeviceMemory(device.name, peak, device.capacity_bytes)
            for device, peak in zip(self.devices, self._peak, strict=True)
        )

    def _apply_frees(self) -> None:
        while self._freed:
            device, nbytes = self._freed.popleft()
            self._in_use[device] -= nbytes

    def _refusal(self, device: int, nbytes: int, capacity: int) -> str:
        name, used = self.devices[device].name, self._in_use[device]
        return (
            f"{name} out of memory. Tried to allocate {amount(nbytes)}. {name} has a total "
            f"capacity of {amount(capacity)} of which {amount(capacity - used)} is free; "
            f"{amount(used)} is in use."
        )


class _Block:
    """A counted storage: its device and size."""

    __slots__ = ("device", "nbytes", "ref")

    def __init__(self, device: int, nbytes: int) -> None:
        self.device = device
        self.nbytes = nbytes
        self.ref: _BlockRef | None = None


class _BlockRef(weakref.ref[Storage]):
    __slots__ = ("block", "key")

    block: _Block
    key: int


class _Here(threading.local):
    device = 0
    limited = False


class VirtualMemory:
    """Counts and limits what this process's devices hold, from `start` to `close`.

    Attributes:
        books: The sums.
    """

    def __init__(self, devices: Sequence[DeviceInfo]) -> None:
        self.books = Books(devices)
        self._here = _Here()
        self._mode = _Mode(self)
        self._blocks: dict[int, _Block] = {}  # by StorageImpl address, while it lives
        self._plans: dict[Any, Plan] = {}
        self._resize: Callable[[Storage, int], Any] | None = None

    def start(self) -> None:
        """Counts what the calling thread allocates from here on; others join by `working_for`."""
        self._join()
        self._watch_resize()

    def close(self) -> None:
        """Stops, on the thread that started it; living storages are forgotten."""
        if self._resize is not None:
            setattr(Storage, "resize_", self._resize)  # noqa: B010  (mypy: a method)
            self._resize = None
        if self._here.limited:
            self._here.limited = False
            dispatch._pop_mode()
        self._blocks.clear()

    @contextmanager
    def working_for(self, device: int) -> Iterator[None]:
        """While entered, what the calling thread allocates counts for the device."""
        self._join()
        before, self._here.device = self._here.device, device
        try:
            yield
        finally:
            self._here.device = before

    def moved(self, tensor: torch.Tensor, device: int) -> None:
        """Counts the tensor's storage for that device, whoever allocated it."""
        block = self._blocks.get(tensor.untyped_storage()._cdata)
        if block is not None and block.device != device:
            self.books.move(block.nbytes, block.device, device)
            block.device = device

    def _join(self) -> None:
        if not self._here.limited:
            # Not `__enter__`: it also sets process-wide flags, which is not safe with threads.
            dispatch._push_mode(self._mode)
            self._here.limited = True

    # -- storages ---------------------------------------------------------------------------------

    def see(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Records what one op allocated."""
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = Plan(func)
            plan.allocates |= func._schema.name == _LIFTS
        if plan.allocates:
            self._see_new(out)
        if plan.resizes:
            storage = args[0].untyped_storage()
            self._see_size(storage, storage.nbytes())

    def _see_new(self, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            if out.is_cpu:
                storage = out.untyped_storage()
                if storage._cdata not in self._blocks:
                    self._follow(storage, storage.nbytes())
        elif isinstance(out, tuple | list):
            for item in out:
                self._see_new(item)

    def _see_size(self, storage: Storage, nbytes: int) -> None:
        block = self._blocks.get(storage._cdata)
        if block is None:
            self._follow(storage, nbytes)
        elif nbytes > block.nbytes:
            self.books.allocate(block.device, nbytes - block.nbytes)
            block.nbytes = nbytes
        elif nbytes < block.nbytes:
            self.books.free(block.device, block.nbytes - nbytes)
            block.nbytes = nbytes

    def _follow(self, storage: Storage, nbytes: int) -> None:
        block = _Block(self._here.device, nbytes)
        self.books.allocate(block.device, nbytes)
        ref = _BlockRef(storage, self._freed)
        ref.block, ref.key = block, storage._cdata
        block.ref = ref
        self._blocks[ref.key] = block

    def _freed(self, ref: weakref.ref[Storage]) -> None:
        # Runs in the storage's destructor, on any thread: no locks, nothing that can raise.
        assert isinstance(ref, _BlockRef)
        block = ref.block
        self._blocks.pop(ref.key, None)
        block.ref = None
        self.books.free(block.device, block.nbytes)

    def _watch_resize(self) -> None:
        """Tracks FSDP and ZeRO-3, which free parameters by resizing their storages to 0."""
        original = self._resize = Storage.resize_
        limit = self

        def resize_(storage: Storage, size: int) -> Any:
            counts = limit._here.limited and storage.device.type == "cpu"
            if counts and size > storage.nbytes():
                limit._see_size(storage, size)
            result = original(storage, size)
            if counts:
                limit._see_size(storage, storage.nbytes())
            return result

        setattr(Storage, "resize_", resize_)  # noqa: B010


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each op, then counts its result."""

    supports_higher_order_operators = True
    stays_beneath = True  # for the thread's life, so others may come and go on top of it

    def __init__(self, limit: VirtualMemory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would wrap this class's dispatch in a dynamo guard, at microseconds per op.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if only_shapes():
            return func(*args, **(kwargs or {}))
        if types and any_unwraps(types):
            return NotImplemented  # its parts come back here
        out = func(*args, **(kwargs or {}))
        self._limit.see(func, args, out)
        return out


def amount(nbytes: int) -> str:
    """Bytes in the format of CUDA's allocator: `1.21 MiB`."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes} bytes"
