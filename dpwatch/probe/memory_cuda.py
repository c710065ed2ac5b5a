"""Memory of CUDA devices: the caching allocator's own figures, read and never reset.

`torch.cuda.memory_stats` (https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory_stats.html)
keeps current and peak allocated bytes on the host: reading them neither synchronises nor allocates.
Its peak is the highest since the process began, or since the user reset it. A step's own peak can't
be read without a reset, and the statistics are the user's: so `peak_bytes` is that running peak.
Parameters, gradients and optimizer state come from walking; the other categories are unknown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from dpwatch.probe.memory_pace import Pace
from dpwatch.probe.memory_walk import kept_by_category
from dpwatch.wire.messages import DeviceInfo, Memory

if TYPE_CHECKING:
    from torch.nn import Module

    from dpwatch.probe.seams import RecordSink

_CURRENT = "allocated_bytes.all.current"
_PEAK = "allocated_bytes.all.peak"


class CudaMemory:
    """Records a `Memory` for each CUDA device on sampled steps; has the ledger's methods.

    Attributes:
        note: Why it stopped, "" while it works.
    """

    def __init__(
        self,
        record: RecordSink,
        devices: Sequence[DeviceInfo],
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepares.

        Args:
            record: Takes `(Memory, device, step, …)`.
            devices: What this process drives; those called `cuda:N` are read.
            clock_ns: Monotonic clock.
        """
        self.note = ""
        self.pace = Pace(clock_ns)
        self._record = record
        self._devices = {
            index: torch.device(device.name)
            for index, device in enumerate(devices)
            if device.kind == "cuda"
        }

    def step_begin(self, step: int) -> None:
        """A step begins."""
        self.pace.begin()

    def step_end(self, step: int, optimizers: Iterable[Any], models: Iterable[Module]) -> None:
        """A step has ended: reads the allocators if it is to be sampled."""
        self.pace.end()
        sampled = not self.note and self.pace.due(step)
        if sampled:
            try:
                self._read(step, list(optimizers), list(models))
            except Exception as error:  # noqa: BLE001  (never into training)
                self.note = f"{type(error).__name__}: {error}"
        self.pace.close(sampled=sampled, prepared=False)

    def before_forward(self) -> None:
        """Nothing to do."""

    def before_backward(self) -> None:
        """Nothing to do."""

    def enter_lane(self, device: int) -> None:
        """Nothing to do: the allocators know their devices."""

    def exit_lane(self) -> None:
        """Nothing to do."""

    def holds(self, device: int, things: Sequence[Any]) -> None:
        """The allocator knows."""

    def owner(self, device: int) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def close(self) -> None:
        """Stops reading."""
        self.note = self.note or "closed"

    def _read(self, step: int, optimizers: list[Any], models: list[Module]) -> None:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        for index, device in self._devices.items():
            stats = torch.cuda.memory_stats(device)
            if _CURRENT not in stats or _PEAK not in stats:
                continue  # another allocator backend keeps no such figures
            current, peak = kept_by_category(optimizers, models, device)
            self._record(
                (Memory, index, step, stats[_CURRENT], stats[_PEAK], current, peak, "cuda")
            )
