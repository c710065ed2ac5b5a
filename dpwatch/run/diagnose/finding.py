"""What rules return, and helpers they share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from dpwatch.run.model.snapshot import Diagnosis

SETTLED_STEPS = 10
"""Steps before shares of the step are meaningful: the first steps are unlike the rest."""


MOST_LOOKED_AT = 64

T = TypeVar("T")


class Finding(msgspec.Struct, frozen=True):
    """A rule's result: a `Diagnosis` whose first step may be unknown.

    Attributes:
        began: The step it began at, if the rule can tell.
    """

    kind: str
    severity: str
    ranks: list[int]
    text: str
    evidence: dict[str, Any]
    began: int | None = None

    def since(self, step: int) -> Diagnosis:
        """The diagnosis, with its first step."""
        return Diagnosis(self.kind, self.severity, self.ranks, step, self.text, self.evidence)


def some_of(ranks: Sequence[T]) -> Sequence[T]:
    """At most `MOST_LOOKED_AT` of them, evenly chosen: enough for typical values."""
    return ranks[:: max(1, math.ceil(len(ranks) / MOST_LOOKED_AT))]


def shared_by_most(values: Iterable[float]) -> float | None:
    """The value that more than half of the values reach, None of none: of two, the lower."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else None
