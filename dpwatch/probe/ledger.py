"""Memory ledger: what CPU ranks and virtual devices hold, by device and category, on sampled steps.

CPU torch keeps no allocator statistics, so on a sampled step every storage is followed through the
dispatcher (`memory_mode`), and what was there before is found by walking models and optimizers
(`memory_walk`). A sampled step costs a few to twenty percent, so steps are sampled so seldom that
the mean stays below one (`memory_pace`); next to nothing happens on the others.

Where following is impossible (a compiled model, an exotic tensor) the ledger stops following for
good, says why in `note`, and from then on reports the process's resident memory: source `rss`,
with parameters, gradients and optimizer state still exact by walking. A process that drives
several virtual devices then reports nothing: its resident memory is no one device's.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from dpwatch.probe.memory_account import account
from dpwatch.probe.memory_cuda import CudaMemory
from dpwatch.probe.memory_ddp import Buckets
from dpwatch.probe.memory_mode import StorageTracker
from dpwatch.probe.memory_pace import Pace
from dpwatch.probe.memory_resident import peak_resident_bytes, resident_bytes
from dpwatch.probe.memory_walk import kept_by_category, persistent_tensors
from dpwatch.wire.messages import ByCategory, DeviceInfo, Memory

if TYPE_CHECKING:
    from torch.nn import Module

    from dpwatch.probe.seams import LedgerLike, RecordSink


def start(record: RecordSink, devices: Sequence[DeviceInfo]) -> LedgerLike:
    """Starts the instrument that fits the devices.

    Args:
        record: Takes `(Memory, device, step, …)`.
        devices: What this process drives.

    Returns:
        The caching allocator's figures for CUDA devices, else a `Ledger`.
    """
    if any(device.kind == "cuda" for device in devices):
        return CudaMemory(record, devices)
    return Ledger(record, devices=max(1, len(devices)))


class Ledger:
    """Follows memory on sampled steps and records a `Memory` a device.

    The step methods are called on lane 0's thread at step boundaries, `enter_lane`, `exit_lane`
    and `owner` on the thread they are about. None of them raises.

    Attributes:
        note: Why following ended, "" while it goes on.
    """

    def __init__(
        self,
        record: RecordSink,
        *,
        devices: int = 1,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepares; nothing is followed before step 1.

        Args:
            record: Takes `(Memory, device, step, …)`.
            devices: How many devices this process drives.
            clock_ns: Monotonic clock.
        """
        self.note = ""
        self.pace = Pace(clock_ns)
        self._record = record
        self._devices = devices
        self._tracker = StorageTracker()
        self._buckets = Buckets(self._tracker)
        self._told: list[tuple[int, weakref.ref[Any]]] = []
        self._ready = False
        self._sampling = False

    def step_begin(self, step: int) -> None:
        """A step begins: starts following if it is to be sampled."""
        if self._ready:
            self._ready = False
            self._guarded(self._start)
        self.pace.begin()

    def step_end(self, step: int, optimizers: Iterable[Any], models: Iterable[Module]) -> None:
        """A step has ended: adds up if it was sampled, and looks around if the next is to be.

        Args:
            step: Its number, from 0.
            optimizers: All optimizers seen.
            models: The outermost modules seen.
        """
        self.pace.end()
        sampled, self._sampling = self._sampling, False
        due = self.pace.due(step + 1)
        if sampled or due:
            optimizers, models = list(optimizers), list(models)
            if sampled:
                self._guarded(lambda: self._finish(step, optimizers, models))
            if due and self.note:
                self._guarded(lambda: self._report_resident(step, optimizers, models))
            elif due:
                self._guarded(lambda: self._look_around(optimizers, models))
        self.pace.close(sampled=sampled, prepared=due)

    def before_forward(self) -> None:
        """Nothing to do."""

    def before_backward(self) -> None:
        """Nothing to do."""

    def enter_lane(self, device: int) -> None:
        """The calling thread works for `device` until `exit_lane`."""
        self._tracker.enter_job(device)

    def exit_lane(self) -> None:
        """The calling thread's job is done."""
        self._tracker.exit_job()

    def owner(self, device: int) -> AbstractContextManager[None]:
        """Storages that the calling thread allocates meanwhile belong to `device`."""
        return self._tracker.owner(device)

    def holds(self, device: int, things: Sequence[Any]) -> None:
        """What these modules and optimizers keep from step to step lies on `device`."""
        self._told.extend((device, weakref.ref(thing)) for thing in things)

    def close(self) -> None:
        """Stops following; to be called on lane 0's thread."""
        self._stop(self.note or "closed")

    def _look_around(self, optimizers: list[Any], models: list[Module]) -> None:
        """Finds what is there before a sampled step; keeps weak references only."""
        if _compiled():
            self._stop("torch.compile is in use: its kernels allocate out of sight")
            return
        self._adopt(optimizers, models)
        self._buckets.look(models)
        self._ready = True

    def _start(self) -> None:
        self.pace.missed = not self._tracker.push()
        if self.pace.missed:
            return
        self._tracker.begin()
        self._buckets.begin()
        self._sampling = True

    def _finish(self, step: int, optimizers: list[Any], models: list[Module]) -> None:
        self._tracker.settle_backward()
        self._adopt(optimizers, models)
        self._buckets.settle()
        events = self._tracker.end()
        self._tracker.pop()
        if self._tracker.failure:
            self._stop(self._tracker.failure)
            return
        for device, usage in sorted(account(events).items()):
            if device < self._devices:
                self._emit(device, step, usage.current_bytes, usage.peak_bytes,
                           usage.current, usage.peak, "ledger")  # fmt: skip

    def _adopt(self, optimizers: list[Any], models: list[Module]) -> None:
        """Counts what is kept: first where the trainer said it lies, then all else."""
        known: set[int] = set()
        for device, ref in self._told:
            thing = ref()
            if thing is not None:
                alone = ([thing], []) if hasattr(thing, "param_groups") else ([], [thing])
                for category, tensor, _ in persistent_tensors(*alone):
                    self._tracker.adopt(tensor, category, known, device=device)
        for category, tensor, of in persistent_tensors(optimizers, models):
            where = self._tracker.device_of(of)
            self._tracker.adopt(tensor, category, known, device=where)

    def _report_resident(self, step: int, optimizers: list[Any], models: list[Module]) -> None:
        now = resident_bytes()
        if now is None or self._devices > 1:
            return
        current, peak = kept_by_category(optimizers, models, torch.device("cpu"))
        self._emit(0, step, now, max(now, peak_resident_bytes()), current, peak, "rss")

    def _emit(
        self,
        device: int,
        step: int,
        current_bytes: int,
        peak_bytes: int,
        current: ByCategory,
        peak: ByCategory,
        source: str,
    ) -> None:
        self._record((Memory, device, step, current_bytes, peak_bytes, current, peak, source))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  (never into training)
            self._stop(f"{type(error).__name__}: {error}")

    def _stop(self, note: str) -> None:
        self.note = note
        self._ready = self._sampling = False
        self._tracker.end()
        self._tracker.pop()
        self._tracker.forget()


def _compiled() -> bool:
    """Whether dynamo has compiled any frame in this process."""
    convert = sys.modules.get("torch._dynamo.convert_frame")
    return getattr(convert, "FRAME_COUNTER", 0) > 0
