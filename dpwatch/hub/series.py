"""Bounded series: what a hub keeps of an endless run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from dpwatch.hub.snapshot import Curve

WINDOW = 128
"""Steps that recent figures (medians, quantiles, shares) are taken over."""

CURVE_POINTS = 240


_WIDEST = 1 << 40


class Thinned(msgspec.Struct):
    """A whole run's curve in bounded space: when full, every other point goes.

    A point is kept when its step is a multiple of `stride`, so equal runs keep equal steps.
    """

    steps: list[int] = []
    values: list[float] = []
    stride: int = 1

    def push(self, step: int, value: float) -> None:
        """Adds a point unless its step is thinned out."""
        if step % self.stride:
            return
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) >= 2 * CURVE_POINTS:
            self.stride = min(2 * self.stride, _WIDEST)
            kept = [i for i, s in enumerate(self.steps) if s % self.stride == 0]
            del kept[:-CURVE_POINTS]  # of steps that come again and again, none is thinned out
            self.steps = [self.steps[i] for i in kept]
            self.values = [self.values[i] for i in kept]

    def freeze(self) -> Curve:
        """The curve as a snapshot holds it."""
        return Curve(tuple(self.steps), tuple(self.values))


class Tally(msgspec.Struct, array_like=True):
    """Sums over one step: calls, payload bytes, bytes on the wire, and their times.

    Of `timed_calls` is known how long they took, of `waited_calls` how long their caller waited.
    """

    calls: int = 0
    nbytes: int = 0
    wire_bytes: int = 0
    timed_calls: int = 0
    timed_ns: int = 0
    wait_ns: int = 0
    waited_calls: int = 0
    waited_ns: int = 0


class ByStep(msgspec.Struct):
    """A `Tally` for each of the last `WINDOW` steps in which something happened."""

    tallies: dict[int, Tally] = {}

    def at(self, step: int) -> Tally:
        """The step's tally, made at first use; the oldest makes room."""
        tally = self.tallies.get(step)
        if tally is None:
            tally = self.tallies[step] = Tally()
            if len(self.tallies) > WINDOW:
                del self.tallies[min(self.tallies)]
        return tally

    def over(self, steps: Sequence[int]) -> list[Tally]:
        """Tallies of these steps; a step in which nothing happened counts as an empty one."""
        return [self.tallies.get(step, _NOTHING) for step in steps]


_NOTHING = Tally()


def keep_last(items: list[object], limit: int) -> None:
    """Bounds a list from the front, seldom enough to cost nothing."""
    if len(items) > 2 * limit:
        del items[: len(items) - limit]


def known(values: Iterable[float | None]) -> list[float]:
    """The values that were measured."""
    return [value for value in values if value is not None]


def quantile(values: Sequence[float], q: float) -> float | None:
    """Linear-interpolated quantile (numpy's default), None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    if low + 1 == len(ordered):
        return float(ordered[low])
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (place - low)


def median(values: Iterable[float | None]) -> float | None:
    """Median of the measured ones among the values, None when there are none."""
    return quantile(known(values), 0.5)
