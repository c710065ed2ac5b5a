"""Implements `--gpu-mem` for each kind of device, and reports the ranks' memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch

from dpwatch.probe.api import ProbeLike

from .config import TrainConfig
from .messages import DeviceMemory
from .rank_place import RankPlace
from .virtual_memory import VirtualMemory

Devices = tuple[DeviceMemory, ...]


class DeviceLimit(Protocol):
    """The memory limit on this rank's devices while it trains."""

    def wrap_probe(self, probe: ProbeLike) -> ProbeLike:
        """The probe to train with; its calls about devices reach the limit too."""

    def report(self) -> Devices:
        """Peak memory of each device; empty without a limit."""

    def oom_device(self, error: BaseException) -> str:
        """The device that ran out of memory according to the error, "" for other errors."""

    def close(self) -> None:
        """Removes the limit."""


def limit_memory(config: TrainConfig, place: RankPlace) -> DeviceLimit:
    """Limits this process's devices from here on, as configured.

    Must be called before anything is allocated on them.
    """
    if config.gpu_mem_bytes is None:
        return NoLimit()
    if place.virtual:
        return VirtualLimit(config, place)
    return CudaLimit(config.gpu_mem_bytes, place)


class NoLimit:
    """Devices without a limit."""

    def wrap_probe(self, probe: ProbeLike) -> ProbeLike:
        """See `DeviceLimit`."""
        return probe

    def report(self) -> Devices:
        """See `DeviceLimit`."""
        return ()

    def oom_device(self, error: BaseException) -> str:
        """See `DeviceLimit`."""
        return ""

    def close(self) -> None:
        """See `DeviceLimit`."""


class VirtualLimit(NoLimit):
    """Virtual devices: every storage is counted."""

    def __init__(self, config: TrainConfig, place: RankPlace) -> None:
        self._memory = VirtualMemory(place.describe(config))
        self._memory.start()

    def wrap_probe(self, probe: ProbeLike) -> ProbeLike:
        """See `DeviceLimit`."""
        return cast("ProbeLike", _LimitedProbe(probe, self._memory))

    def report(self) -> Devices:
        """See `DeviceLimit`."""
        return self._memory.books.report()

    def oom_device(self, error: BaseException) -> str:
        """See `DeviceLimit`."""
        lacking = isinstance(error, torch.OutOfMemoryError)
        return self._memory.books.oom_device if lacking else ""

    def close(self) -> None:
        """See `DeviceLimit`."""
        self._memory.close()


class CudaLimit(NoLimit):
    """CUDA devices: the caching allocator enforces a share of each, and keeps statistics."""

    def __init__(self, capacity_bytes: int, place: RankPlace) -> None:
        self._capacity_bytes = capacity_bytes
        self._devices = place.devices
        for device in place.devices:
            total = torch.cuda.get_device_properties(device).total_memory
            share = min(1.0, capacity_bytes / total)
            torch.cuda.set_per_process_memory_fraction(share, device)

    def report(self) -> Devices:
        """See `DeviceLimit`."""
        return tuple(
            DeviceMemory(str(d), torch.cuda.max_memory_allocated(d), self._capacity_bytes)
            for d in self._devices
        )

    def oom_device(self, error: BaseException) -> str:
        """See `DeviceLimit`; CUDA's message says `GPU 1 has a total capacity of …`."""
        if not isinstance(error, torch.OutOfMemoryError):
            return ""
        named = (d for d in self._devices if f"GPU {d.index} " in str(error))
        return str(next(named, self._devices[0]))


class _LimitedProbe:
    """A probe that also tells the limit which device a thread works for."""

    def __init__(self, probe: ProbeLike, memory: VirtualMemory) -> None:
        self._probe = probe
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)

    @contextmanager
    def lane(self, device: int) -> Iterator[None]:
        with self._memory.working_for(device), self._probe.lane(device):
            yield

    @contextmanager
    def owns(self, device: int) -> Iterator[None]:
        with self._memory.working_for(device), self._probe.owns(device):
            yield
