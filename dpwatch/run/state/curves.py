"""Curves over a whole run, in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import lt

import msgspec

from dpwatch.run.model.snapshot import Curve
from dpwatch.wire.arrays import Floats, Ints

CURVE_POINTS = 240
"""A long curve keeps between this number of points and twice as many."""

_WIDEST = 1 << 40


class Thinned(msgspec.Struct):
    """A curve that keeps the first value seen in each `stride` steps.

    The stride doubles when the curve is full, so equal runs keep equal steps, whichever steps have
    a value. If steps restart from an earlier one (a restarted rank), they replace the later ones.
    """

    steps: Ints = msgspec.field(default_factory=Ints)
    values: Floats = msgspec.field(default_factory=Floats)
    stride: int = 1

    def push(self, step: int, value: float) -> None:
        """Adds a point unless its stride already has one."""
        if self.steps:
            ahead = step // self.stride - self.steps[-1] // self.stride
            if not ahead:
                return
            if ahead < 0:
                self._cut(step)
        self._append(step, value)

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Adds points in order."""
        whole = self.stride == 1 and len(self.steps) + len(steps) < 2 * CURVE_POINTS
        if whole and all(map(lt, [*self.steps[-1:], *steps], steps[not self.steps :])):
            self.steps.extend(steps)
            self.values.extend(values)
            return
        for step, value in zip(steps, values, strict=True):
            self.push(step, value)

    def freeze(self) -> Curve:
        """Immutable copy for a snapshot."""
        return Curve(tuple(self.steps), tuple(self.values))

    def _append(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)
        while len(self.steps) >= 2 * CURVE_POINTS and self.stride < _WIDEST:
            self.stride *= 2
            kept = list(self._kept())
            self.steps = Ints(self.steps[i] for i in kept)
            self.values = Floats(self.values[i] for i in kept)

    def _cut(self, step: int) -> None:
        """Removes this step and all later ones."""
        at = bisect_left(self.steps, step)
        del self.steps[at:], self.values[at:]

    def _kept(self) -> Iterator[int]:
        """Indices of the points to keep after the stride has doubled."""
        last = -1
        for i, step in enumerate(self.steps):
            if step // self.stride != last:
                last = step // self.stride
                yield i


class Envelope(Thinned):
    """A curve that keeps the lowest and highest value in each `stride` steps, thus every peak."""

    def push(self, step: int, value: float) -> None:
        """Adds a point unless it lies between the lowest and highest of its stride."""
        steps, values, stride = self.steps, self.values, self.stride
        if steps and step < steps[-1]:
            self._cut(step)
        bucket = step // stride
        if len(steps) > 1 and steps[-2] // stride == bucket:
            before, last = values[-2], values[-1]
            low, high = (before, last) if before < last else (last, before)
            if low <= value <= high:
                return
            passed = high if value > high else low
            at = len(steps) - (2 if before == passed else 1)
            del steps[at], values[at]
        self._append(step, value)

    def downsample(self, points: int) -> tuple[Ints, Floats]:
        """Downsamples to at most `points` points: both ends, and the extremes of each interval."""
        kept = list(range(len(self.steps)))
        if len(kept) > points:
            width = interval_width(len(kept), points)
            parts = [_extremes(self.values, at, at + width) for at in kept[::width]]
            kept = sorted({0, len(kept) - 1, *(i for part in parts for i in part)})
        return Ints(self.steps[i] for i in kept), Floats(self.values[i] for i in kept)

    def _kept(self) -> Iterator[int]:
        first = 0
        for i, step in enumerate(self.steps):
            if step // self.stride != self.steps[first] // self.stride:
                yield from _extremes(self.values, first, i)
                first = i
        yield from _extremes(self.values, first, len(self.steps))


def interval_width(length: int, points: int) -> int:
    """Interval width for `points` points: two extremes per interval, and both ends."""
    return -(-length // (points // 2 - 1))


def _extremes(values: Sequence[float], start: int, stop: int) -> list[int]:
    """Sorted indices of the lowest and highest value in a slice."""
    part = values[start:stop]
    return sorted({start + part.index(min(part)), start + part.index(max(part))})
