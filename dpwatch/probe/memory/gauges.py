"""A device's total memory, from whoever counts it anyway; nothing is ever reset.

`HostGauge`: the operating system's resident size, and malloc's bytes in use. `CudaGauge`: the
caching allocator's statistics
(https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory_stats.html), which are kept on the
host, so reading them neither synchronizes nor allocates.

Both peaks are cumulative: the highest since the process started (or since the user reset it). A
step's own peak cannot be read without a reset, and the statistics belong to the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from dpwatch.probe.memory.heap import Heap
from dpwatch.probe.memory.resident import resident
from dpwatch.wire.messages import DeviceInfo

_CURRENT = "allocated_bytes.all.current"
_PEAK = "allocated_bytes.all.peak"


class Totals(NamedTuple):
    """Bytes held now, the most since the process started, and what malloc has handed out."""

    current: int
    peak: int
    heap: int | None = None


class Gauge(Protocol):
    """Reads the memory of one device.

    Attributes:
        device: The device.
        source: As in `wire.messages.Memory`.
    """

    device: torch.device
    source: str

    def totals(self) -> Totals | None:
        """What it holds, None if unknown."""

    def in_use(self) -> int | None:
        """Bytes that rise and fall with its tensors; cheap enough to read several times a step."""


class HostGauge:
    """Host memory of this process."""

    device = torch.device("cpu")
    source = "rss"

    def __init__(self) -> None:
        self._heap = Heap()

    def totals(self) -> Totals | None:
        """See `Gauge`; everything the process holds, including its libraries."""
        heap = self._heap.in_use()
        now, peak = resident()
        return None if now is None else Totals(now, peak, heap)

    def in_use(self) -> int | None:
        """See `Gauge`: malloc's."""
        return self._heap.in_use()


class CudaGauge:
    """A CUDA device, as far as this process's caching allocator uses it."""

    source = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def totals(self) -> Totals | None:
        """See `Gauge`; None before CUDA is initialized, and for allocators without statistics."""
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return None
        stats = torch.cuda.memory_stats(self.device)
        if _CURRENT not in stats or _PEAK not in stats:
            return None
        return Totals(stats[_CURRENT], stats[_PEAK])

    def in_use(self) -> int | None:
        """See `Gauge`: the allocator's."""
        totals = self.totals()
        return None if totals is None else totals.current


def gauges_of(devices: Sequence[DeviceInfo]) -> dict[int, Gauge]:
    """Gauges by device index, for the devices that this process's figures describe.

    With several devices in host memory, the process's figures describe none of them.
    """
    found: dict[int, Gauge] = {
        index: CudaGauge(torch.device(device.name))
        for index, device in enumerate(devices)
        if device.kind == "cuda"
    }
    if not found and len(devices) <= 1:
        found[0] = HostGauge()
    return found


def default_gauge() -> Gauge:
    """A gauge for a process whose device is not known yet."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return CudaGauge(torch.device("cuda", torch.cuda.current_device()))
    return HostGauge()
