"""How a figure is spread over a run's rows: lowest, median, highest, and whose they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from dpwatch.run.model.snapshot import Rank, Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A figure over all rows in which it is known.

    Attributes:
        known: How many rows those are.
        lowest: The row with the lowest value.
        highest: The row with the highest.
    """

    known: int
    low: float
    median: float
    high: float
    lowest: Rank
    highest: Rank


def spread(run: Run, value: Callable[[Rank], float | None]) -> Spread | None:
    """The spread of a figure, None where no row has it."""
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
