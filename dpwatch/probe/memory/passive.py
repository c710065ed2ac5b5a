"""Memory of a user's script: read and walked now and then, without hooks or tracking.

In a sampled step, a device's total comes from whoever counts it anyway (`gauges`), what models and
optimizers keep comes from walking them (`walk`), to the byte, and activations are estimated
(`rise`). Other memory, such as temporaries, is unknown. Samples are spaced by their cost (`pace`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.instruments import NoLedger
from dpwatch.probe.memory.ddp import BucketSizes
from dpwatch.probe.memory.gauges import Totals, default_gauge, gauges_of
from dpwatch.probe.memory.pace import DirectPace
from dpwatch.probe.memory.rise import Estimate, Rise
from dpwatch.probe.memory.walk import Walk
from dpwatch.wire.messages import ByCategory, DeviceInfo, Memory

if TYPE_CHECKING:
    from torch.nn import Module

    from dpwatch.probe.send.recorder import RecordSink


class PassiveMemory(NoLedger):
    """Records a `Memory` per device in sampled steps. Called on lane 0's thread only.

    Attributes:
        note: Why it stopped, "" while it works.
        pace: Which steps are sampled.
    """

    def __init__(
        self,
        record: RecordSink,
        devices: Sequence[DeviceInfo],
        *,
        before: FirstStep | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepares.

        Args:
            record: Takes `(Memory, device, step, …)`.
            devices: The devices this process drives.
            before: The instrument of the first step.
            clock_ns: Monotonic clock.
        """
        self.note = ""
        self.pace = DirectPace(clock_ns)
        self._record = record
        self._clock_ns = clock_ns
        self._gauges = gauges_of(devices)
        self._rise = Rise(self._gauges, None if before is None else before.seen())
        self._buckets = BucketSizes()
        self._optimizers: list[weakref.ref[Any]] = [] if before is None else before.optimizers
        self._sampling = False
        self._cost_ns = 0

    def step_begin(self, step: int) -> None:
        """A step begins: decides whether to sample it."""
        self._cost_ns = 0
        self._sampling = not self.note and self.pace.due(step)
        if self._sampling:
            self._guarded(self._rise.begin, self._optimizers)

    def before_forward(self) -> None:
        """See `LedgerLike`."""
        if self._sampling:
            self._guarded(self._rise.before_forward)

    def before_backward(self) -> None:
        """See `LedgerLike`."""
        if self._sampling:
            self._guarded(self._rise.before_backward)

    def step_end(self, step: int, optimizers: Iterable[Any], models: Iterable[Module]) -> None:
        """A step has ended: scans if it is sampled."""
        if self._sampling:
            self._sampling = False
            self._guarded(lambda: self._scan(step, list(optimizers), list(models)))
            self.pace.spent(step, self._cost_ns)

    def close(self) -> None:
        """Stops reading."""
        self._stop("closed")

    def _scan(self, step: int, optimizers: list[Any], models: list[Module]) -> None:
        totals = {index: gauge.totals() for index, gauge in self._gauges.items()}
        if not any(totals.values()):
            return
        walk = Walk(optimizers, models)
        estimates = self._rise.end(len(walk.inside))
        for index, gauge in self._gauges.items():
            held = totals[index]
            if held is not None:
                buckets = self._buckets.on(gauge.device, walk.inside)
                now = _with_buckets(walk.on(gauge.device), buckets)
                self._tell(index, step, held, now, estimates.get(index))
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]

    def _tell(
        self, index: int, step: int, held: Totals, now: ByCategory, estimate: Estimate | None
    ) -> None:
        # These exist throughout the step, so at the peak too; gradients do not.
        peak = ByCategory(params=now.params, optimizer=now.optimizer, buffers=now.buffers)
        source = self._gauges[index].source
        self._record((Memory, index, step, held.current, held.peak, now, peak, source,
                      *(estimate or (None, None)), held.heap))  # fmt: skip

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        began = self._clock_ns()
        try:
            work(*args)
        except Exception as error:
            if is_foreign(error):
                raise
            self._stop(f"{type(error).__name__}: {error}")
        finally:
            self._cost_ns += self._clock_ns() - began

    def _stop(self, note: str) -> None:
        self.note = self.note or note
        self._sampling = False


class FirstStep(NoLedger):
    """Used until the devices are known, at the end of the first step: only measures its rise.

    Attributes:
        optimizers: Those that existed at its end.
    """

    def __init__(self) -> None:
        self.optimizers: list[weakref.ref[Any]] = []
        self._rise: Rise | None = None
        self._failed = False

    def before_forward(self) -> None:
        """See `LedgerLike`."""
        self._guarded(self._start_rise)

    def before_backward(self) -> None:
        """See `LedgerLike`."""
        if self._rise is not None:
            self._guarded(self._rise.before_backward)

    def step_end(self, step: int, optimizers: Iterable[Any], models: Iterable[Module]) -> None:
        """See `LedgerLike`."""
        self.optimizers = [weakref.ref(optimizer) for optimizer in optimizers]

    def seen(self) -> dict[torch.device, int]:
        """The rise by device; empty if unknown."""
        return {} if self._rise is None or self._failed else self._rise.largest()

    def _start_rise(self) -> None:
        if self._rise is None:
            self._rise = Rise({0: default_gauge()})
        self._rise.before_forward()

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except Exception as error:
            self._failed = True
            if is_foreign(error):
                raise


def _with_buckets(now: ByCategory, buckets: int | None) -> ByCategory:
    if now.buffers is None or buckets == 0:
        return now
    total = None if buckets is None else now.buffers + buckets
    return ByCategory(params=now.params, grads=now.grads, optimizer=now.optimizer, buffers=total)
