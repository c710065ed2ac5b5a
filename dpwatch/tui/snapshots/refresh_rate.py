"""The dashboard's refresh interval."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

INTERVALS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
USUAL_S = 0.25


@runtime_checkable
class Paced(Protocol):
    """A source that gives a snapshot every `interval_s` seconds; set from any thread."""

    interval_s: float


def beside(interval_s: float, by: int) -> float:
    """The next longer interval (`by` 1) or shorter one (-1); unchanged at the ends."""
    if by > 0:
        return min((each for each in INTERVALS_S if each > interval_s), default=interval_s)
    return max((each for each in INTERVALS_S if each < interval_s), default=interval_s)
