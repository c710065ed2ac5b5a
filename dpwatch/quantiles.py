"""Quantiles, medians and means of measured values, None where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the measured ones among the values, None when there are none."""
    found = known(values)
    return sum(found) / len(found) if found else None
