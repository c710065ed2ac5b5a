"""Distribution of a figure over a run's rows: lowest, median and highest value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from dpwatch.run.model.snapshot import Rank, Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Distribution of a figure over the rows in which it is known.

    Attributes:
        known: Number of those rows.
        lowest: Row with the lowest value.
        highest: Row with the highest value.
    """

    known: int
    low: float
    median: float
    high: float
    lowest: Rank
    highest: Rank


def spread(run: Run, value: Callable[[Rank], float | None]) -> Spread | None:
    """Distribution of a figure, None if it is known in no row."""
    pairs = [
        (found, rank)
        for rank in run.ranks
        if (found := value(rank)) is not None and math.isfinite(found)
    ]
    if not pairs:
        return None
    low, high = min(pairs, key=lambda p: p[0]), max(pairs, key=lambda p: p[0])
    return Spread(
        known=len(pairs),
        low=low[0],
        median=statistics.median(found for found, _ in pairs),
        high=high[0],
        lowest=low[1],
        highest=high[1],
    )
