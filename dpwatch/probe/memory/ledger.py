"""Chooses how memory is measured, and implements the exact way: a ledger of every storage.

`start` chooses. A script's own devices are measured passively (`passive`): nothing of the probe
interferes with the dispatcher. The exact ledger is for virtual devices, which share the host memory
of one process, and for scripts that ask for it (`watch(memory="exact")`, `dpwatch run --memory
exact`, `DPWATCH_MEMORY=exact`).

In a sampled step it tracks every storage through the dispatcher (`dispatch_mode`), and finds what
existed before by walking models and optimizers (`walk`). A sampled step costs a few to twenty
percent, so steps are sampled rarely enough to keep the mean below one (`pace`).

Any dispatch mode makes ATen take other paths through some operations, so the last bits of results
may differ there. The ledger therefore disables itself for good as soon as it meets what modes are
known to harm: torch.compile, functorch transforms, complex tensors, and tensor subclasses other
than DTensor. It also does so if tracking fails, or if a mode of the script's own never goes away.
It says why in `note`, and memory is measured passively from then on. A process that drives several
virtual devices then reports nothing: its memory belongs to no single device.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.memory.account import account
from dpwatch.probe.memory.ddp import Buckets
from dpwatch.probe.memory.dispatch_mode import StorageTracker
from dpwatch.probe.memory.mode_conflicts import COMPILES, compile_in_use
from dpwatch.probe.memory.pace import Pace
from dpwatch.probe.memory.passive import FirstStep, PassiveMemory
from dpwatch.probe.memory.walk import no_torch_function, parts_of, persistent_tensors
from dpwatch.wire.messages import DeviceInfo, Memory

if TYPE_CHECKING:
    from torch.nn import Module

    from dpwatch.probe.instruments import LedgerLike
    from dpwatch.probe.send.recorder import RecordSink

PASSIVE, EXACT = CHOICES = ("passive", "exact")

VARIABLE = "DPWATCH_MEMORY"

MOST_MISSED = 20
"""Steps in a row that a mode of the script's own may prevent from being tracked."""

_SAID = (
    "dpwatch: memory=exact tracks the tensors of sampled steps with a dispatch mode, which makes "
    "torch compute some operations differently: the last bits of prod, of masked_fill's backward "
    "and of complex eigvalsh and pinv may change there. See docs/memory.md\n"
)


def start(
    record: RecordSink,
    devices: Sequence[DeviceInfo],
    memory: str = PASSIVE,
    before: LedgerLike | None = None,
) -> LedgerLike:
    """Starts the instrument that fits the devices.

    Args:
        record: Takes `(Memory, device, step, …)`.
        devices: The devices this process drives; empty as long as they are unknown.
        memory: One of `CHOICES`.
        before: The instrument used until the devices were known.
    """
    if not devices:
        return FirstStep()
    kinds = {device.kind for device in devices}
    if "virtual" in kinds:
        return Ledger(record, devices=len(devices))
    if memory == EXACT and "cuda" not in kinds:  # CUDA's allocator keeps its own statistics
        if os.environ.get("LOCAL_RANK", "0") == "0":
            _say(_SAID)
        return Ledger(record, devices=len(devices))
    known = before if isinstance(before, FirstStep) else None
    return PassiveMemory(record, devices, before=known)


def choice(asked: str | None = None) -> str:
    """How memory is to be measured; an invalid value is reported once on stderr.

    Args:
        asked: The script's choice; None uses the environment's.
    """
    name, word = ("memory", asked) if asked is not None else (VARIABLE, os.environ.get(VARIABLE))
    if word in CHOICES:
        return word
    if word:
        _say(f"dpwatch: unknown {name}={word!r}, using passive; choose passive or exact\n")
    return PASSIVE


class Ledger:
    """Tracks memory in sampled steps and records a `Memory` per device.

    The step methods are called on lane 0's thread at step boundaries; `enter_lane`, `exit_lane` and
    `owner` on the thread they concern. None of them raises.

    Attributes:
        note: Why tracking ended, "" while it goes on.
    """

    def __init__(
        self,
        record: RecordSink,
        *,
        devices: int = 1,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepares; nothing is tracked before step 1.

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
        self._declared: list[tuple[int, weakref.ref[Any]]] = []
        self._ready = False
        self._sampling = False
        self._missed = 0
        alike = [DeviceInfo("cpu", "cpu")] * devices
        self._passive = PassiveMemory(record, alike, clock_ns=clock_ns)

    def step_begin(self, step: int) -> None:
        """A step begins: starts tracking if it is to be sampled."""
        if self.note:
            self._passive.step_begin(step)
            return
        if self._ready:
            self._ready = False
            self._guarded(self._start)
        self.pace.begin()

    def before_forward(self) -> None:
        """See `LedgerLike`."""
        self._tracker.leave_if_failed()
        if self.note:
            self._passive.before_forward()

    def before_backward(self) -> None:
        """See `LedgerLike`."""
        self._tracker.leave_if_failed()
        if self.note:
            self._passive.before_backward()

    def step_end(self, step: int, optimizers: Iterable[Any], models: Iterable[Module]) -> None:
        """A step has ended: sums it if it was sampled, and scans if the next one is to be.

        Args:
            step: Its number, from 0.
            optimizers: All optimizers seen.
            models: The outermost modules seen.
        """
        if self.note:
            self._passive.step_end(step, optimizers, models)
            return
        self.pace.end()
        sampled, self._sampling = self._sampling, False
        due = self.pace.due(step + 1)
        if sampled:
            self._guarded(lambda: self._finish(step, list(optimizers), list(models)))
        if due and not self.note:
            self._guarded(lambda: self._scan(list(optimizers), list(models)))
        self.pace.close(sampled=sampled, prepared=due)

    def enter_lane(self, device: int) -> None:
        """The calling thread works for `device` until `exit_lane`."""
        self._tracker.enter_job(device)

    def exit_lane(self) -> None:
        """The calling thread's job has ended."""
        self._tracker.exit_job()

    def owner(self, device: int) -> AbstractContextManager[None]:
        """Storages that the calling thread allocates meanwhile belong to `device`."""
        return self._tracker.owner(device)

    def holds(self, device: int, things: Sequence[Any]) -> None:
        """What these modules and optimizers keep from step to step lives on `device`."""
        self._declared.extend((device, weakref.ref(thing)) for thing in things)

    def close(self) -> None:
        """Stops tracking; must be called on lane 0's thread."""
        self._stop(self.note or "closed")
        self._passive.close()

    def _scan(self, optimizers: list[Any], models: list[Module]) -> None:
        """Finds what exists before a sampled step; keeps weak references only."""
        if compile_in_use():
            self._stop(COMPILES)
            return
        if not self._tracker.may_push():
            self._miss()
            return
        self._adopt(optimizers, models)
        self._buckets.scan(models)
        self._ready = True

    def _start(self) -> None:
        if not self._tracker.push():
            self._miss()
            return
        self.pace.missed, self._missed = False, 0
        self._tracker.begin()
        self._buckets.begin()
        self._sampling = True

    def _miss(self) -> None:
        self.pace.missed = True
        self._missed += 1
        if self._missed >= MOST_MISSED:
            self._stop("a dispatch mode of the script's own is on")

    def _finish(self, step: int, optimizers: list[Any], models: list[Module]) -> None:
        if not self._tracker.failure:
            self._tracker.finish_backward()
            self._adopt(optimizers, models)
            self._buckets.finish()
        events = self._tracker.end()
        self._tracker.pop()
        if self._tracker.failure:
            self._stop(self._tracker.failure)
            return
        for device, usage in sorted(account(events).items()):
            if device < self._devices:
                self._record((Memory, device, step, usage.current_bytes, usage.peak_bytes,
                              usage.current, usage.peak, "ledger"))  # fmt: skip

    def _adopt(self, optimizers: list[Any], models: list[Module]) -> None:
        """Counts what is kept: first what the trainer declared with `holds`, then the rest."""
        known: set[int] = set()
        tracker = self._tracker
        with no_torch_function():
            for device, ref in self._declared:
                thing = ref()
                if thing is not None:
                    alone = ([thing], []) if hasattr(thing, "param_groups") else ([], [thing])
                    for category, tensor, _ in persistent_tensors(*alone):
                        tracker.adopt(tensor, category, known, device=device)
            for category, tensor, of in persistent_tensors(optimizers, models):
                where = 0 if self._devices == 1 else tracker.device_of(_held_by(of))
                tracker.adopt(tensor, category, known, device=where)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if is_foreign(error):
                raise
            self._stop(f"{type(error).__name__}: {error}")

    def _stop(self, note: str) -> None:
        self.note = note
        self._ready = self._sampling = False
        self._tracker.end()
        self._tracker.pop()
        self._tracker.forget()


def _held_by(parameter: Any) -> torch.Tensor | None:
    """The plain tensor that a parameter is, or that holds its memory."""
    return next(iter(parts_of(parameter)), None) if isinstance(parameter, torch.Tensor) else None


def _say(line: str) -> None:
    try:
        sys.stderr.write(line)
    except Exception as error:
        if is_foreign(error):
            raise  # otherwise stderr is closed or missing
