"""A step's loss and samples, read off what backward is called with.

Backwards add up, as their gradients do: what a step minimises is the sum of their roots (who
accumulates divides each root by how many there are). Not so where the gradients of an earlier
backward were thrown away before a later one. With other parameters than before it is a trial of
the same step (LBFGS' closures, the second pass of sharpness-aware minimisation): the first counts.
With the same parameters the later one takes the earlier one's place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch

from dpwatch.probe.steps.tensors import scalar_of
from dpwatch.probe.steps.updates import Watched

MOST_SCALED = 256
"""Scaled losses known of a step; those of more are unknown."""

MOST_PENDING = 64
"""Batches kept that no backward has gone through yet."""


class Relation(Enum):
    """What a backward is to those before it in the same step."""

    MORE = "adds to them"
    AGAIN = "tries other parameters"
    INSTEAD = "takes their place"
    UNCLEAR = "nobody can tell"


def relation_to(watched: Watched) -> Relation:
    """What the backward that begins is to the last one, by what became of a parameter between."""
    if watched.was_updated():
        return Relation.AGAIN
    lost = watched.lost_gradient()
    if lost is None:
        return Relation.UNCLEAR
    return Relation.INSTEAD if lost else Relation.MORE


class StepLoss:
    """The loss of the step under way.

    Attributes:
        value: Known so far, None if it isn't.
    """

    __slots__ = ("_closed", "_explicit", "_scaled", "_sides", "value")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.value: float | None = None
        self._closed = self._explicit = False
        self._sides = 0
        self._scaled: list[tuple[weakref.ref[torch.Tensor], float | None]] = []

    def set(self, value: float) -> None:
        """The trainer's own figure replaces what was read."""
        self.value, self._explicit = value, True

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        """A GradScaler has scaled these: as backward's root they are so much more than the loss."""
        if len(self._scaled) >= MOST_SCALED:
            return
        scale = getattr(scaler, "_scale", None)  # private: without it the loss is unknown
        factor = None if scale is None else scalar_of(scale)
        for each in outputs if isinstance(outputs, list | tuple) else (outputs,):
            if isinstance(each, torch.Tensor):
                self._scaled.append((weakref.ref(each), factor))

    def backward(
        self, roots: Sequence[Any], gradients: Sequence[Any], relation: Relation, *, keeps: bool
    ) -> None:
        """A backward has ended.

        Args:
            roots: What it began with.
            gradients: The gradients it was given, one a root; torch makes ones of those left out.
            relation: To the backwards before it in this step.
            keeps: It accumulated into `.grad`; else (`torch.autograd.grad`) it counts only in a
                step without such a one.
        """
        if self._explicit or self._closed:
            return
        if relation is Relation.AGAIN:
            self._closed = True
            return
        value = self._sum(roots, gradients)
        if relation is Relation.UNCLEAR:
            self._closed, self.value = True, None
        elif value is None:
            return
        elif not keeps:
            self._sides += 1
            self.value = value if self._sides == 1 else None
        elif relation is Relation.INSTEAD or self._sides:
            self._sides, self.value = 0, value
        else:
            self.value = value if self.value is None else self.value + value

    def _sum(self, roots: Sequence[Any], gradients: Sequence[Any]) -> float | None:
        total: float | None = None
        for root, gradient in zip(roots, gradients, strict=False):
            if scalar_of(gradient) != 1.0:  # the root is no loss, or not the whole of it
                continue
            value = scalar_of(root)
            if value is not None and self._scaled:
                scale = next((scale for ref, scale in self._scaled if ref() is root), None)
                value = value / scale if scale else None
            if value is not None:
                total = value if total is None else total + value
        return total


class Batches:
    """Rows that trained models were called with and no backward has gone through yet.

    A backward takes the largest of them, for the smaller ones were an evaluation, or its parts.
    Where more backwards follow, as behind the micro-batches of a pipeline, each takes its own.
    """

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: list[int] = []

    def begin(self) -> None:
        """A step begins."""
        if self._pending:
            self._pending = []

    def called(self, rows: int) -> None:
        """A trained model is called with so many."""
        if len(self._pending) >= MOST_PENDING:
            self._pending.remove(min(self._pending))
        self._pending.append(rows)

    def backward(self) -> int | None:
        """A backward goes through one of them. Returns: its rows."""
        if not self._pending:
            return None
        rows = max(self._pending)
        self._pending.remove(rows)
        return rows
