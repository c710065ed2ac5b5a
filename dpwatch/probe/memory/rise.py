"""Estimates activations: the growth of memory in use from the start of forward to that of backward.

Memory that is alive when backward begins but was not when forward began is mostly what backward
needs. The difference is

- too high by the bookkeeping of autograd and Python (0.3 to 2 KiB per tensor on the CPU);
- too low by what the script kept from the previous step and freed meanwhile: `out` and `loss` in
  `out = model(x); loss = …`. In the first step there is nothing to free, so its rise is an upper
  bound, as long as batches stay as large. Gradients that `zero_grad()` frees in between are
  measured and added.

Parameters that FSDP gathers in forward and has not freed by then count too.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from dpwatch.probe.memory.gauges import Gauge
from dpwatch.probe.memory.walk import own_gradient_bytes

MOST_MICRO_BATCHES = 32
"""Micro-batches of a step that are measured."""

BOOKKEEPING = 0.01
MODULE_BYTES = 4 << 10
"""Allowance for bookkeeping: a share of the estimate, and so many bytes per module."""

_KEPT = 4
"""Number of steps whose estimates' spread is part of the error."""


class Estimate(NamedTuple):
    """Bytes, and a bound on their error: None if unknown."""

    nbytes: int
    error: int | None


class Rise:
    """The largest rise of a step, by device index.

    Args:
        gauges: By device index.
        first: The first step's rise, by device.
    """

    def __init__(
        self, gauges: Mapping[int, Gauge], first: Mapping[torch.device, int] | None = None
    ) -> None:
        self._gauges = gauges
        self._first = first or {}
        self._before: dict[int, deque[int]] = {i: deque(maxlen=_KEPT) for i in gauges}
        self.begin(())

    def begin(self, optimizers: Iterable[weakref.ref[Any]]) -> None:
        """A sampled step begins."""
        self._optimizers = list(optimizers)
        self._gradients: dict[torch.device, int] | None = None
        self._bases: dict[int, int | None] | None = None
        self._largest: dict[int, int] = {}
        self._measured = 0

    def before_forward(self) -> None:
        """An outermost forward is about to begin; only the first one after a backward counts."""
        if self._bases is not None or self._measured >= MOST_MICRO_BATCHES:
            return
        if not self._measured:
            self._gradients = self._own_gradients()
        self._measured += 1
        self._bases = {index: gauge.in_use() for index, gauge in self._gauges.items()}

    def before_backward(self) -> None:
        """Backward is about to begin."""
        bases, self._bases = self._bases, None
        if bases is None:
            return
        now = {index: gauge.in_use() for index, gauge in self._gauges.items()}
        freed = self._freed_gradients()
        for index, gauge in self._gauges.items():
            base, top = bases[index], now[index]
            if base is not None and top is not None:
                rise = top - base + freed.get(gauge.device, 0)
                self._largest[index] = max(rise, self._largest.get(index, rise))

    def end(self, modules: int) -> dict[int, Estimate]:
        """The step has ended.

        Args:
            modules: Number of modules in the models.

        Returns:
            By device index, if there was a forward and a backward and they could be measured.
        """
        found = {}
        for index, nbytes in self._largest.items():
            if nbytes >= 0:
                self._before[index].append(nbytes)
                found[index] = Estimate(nbytes, self._error(index, nbytes, modules))
        self.begin(())
        return found

    def largest(self) -> dict[torch.device, int]:
        """The largest so far, by device."""
        return {self._gauges[index].device: rise for index, rise in self._largest.items()}

    def _freed_gradients(self) -> Mapping[torch.device, int]:
        """Gradients freed since forward began, in the step's first micro-batch."""
        before, self._gradients = self._gradients, None
        if not before:
            return {}
        now = self._own_gradients()
        return {device: nbytes - now.get(device, 0) for device, nbytes in before.items()}

    def _own_gradients(self) -> dict[torch.device, int]:
        alive = [thing for ref in self._optimizers if (thing := ref()) is not None]
        return own_gradient_bytes(alive)

    def _error(self, index: int, nbytes: int, modules: int) -> int | None:
        first = self._first.get(self._gauges[index].device)
        if first is None or first < nbytes - MODULE_BYTES * modules:
            return None  # the first batch was smaller: no bound
        before = self._before[index]
        spread = max(before) - min(before)
        bookkeeping = int(BOOKKEEPING * nbytes) + MODULE_BYTES * max(1, modules)
        return max(first - nbytes, spread) + bookkeeping
