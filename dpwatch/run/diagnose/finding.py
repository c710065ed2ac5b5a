"""What a rule answers with, and the words rules share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from dpwatch.run.model.snapshot import Diagnosis

SETTLED_STEPS = 10
"""Steps from which on shares of the step are worth a word: the first ones are unlike the rest."""


MOST_LOOKED_AT = 64

T = TypeVar("T")


class Finding(msgspec.Struct, frozen=True):
    """A rule's answer: a `Diagnosis` that need not know since when.

    Attributes:
        began: The step it began at, where the rule can tell.
    """

    kind: str
    severity: str
    ranks: list[int]
    text: str
    evidence: dict[str, Any]
    began: int | None = None

    def since(self, step: int) -> Diagnosis:
        """The diagnosis, as begun at that step."""
        return Diagnosis(self.kind, self.severity, self.ranks, step, self.text, self.evidence)


def some_of(ranks: Sequence[T]) -> Sequence[T]:
    """At most `MOST_LOOKED_AT` of them, evenly chosen: enough for what is typical of all."""
    return ranks[:: max(1, math.ceil(len(ranks) / MOST_LOOKED_AT))]


def shared_by_most(values: Iterable[float]) -> float | None:
    """What more than half of the values reach, None of none: of two, the lower."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else None
