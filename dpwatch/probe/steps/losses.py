"""A step's loss and samples, read from the arguments of backward.

Backwards add up, as their gradients do: what a step minimizes is the sum of their roots (with
gradient accumulation, each root is divided by the number of micro-batches). This does not hold if
the gradients of an earlier backward were dropped before a later one. With changed parameters, the
later one is a trial within the same step (LBFGS closures, the second pass of sharpness-aware
minimization), and the first one counts. With unchanged parameters, the later one replaces the
earlier one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch

from dpwatch.probe.steps.tensors import scalar_of
from dpwatch.probe.steps.updates import WatchedParameter

MOST_SCALED = 256
"""Scaled losses tracked per step; the loss of further ones is unknown."""

MOST_PENDING = 64
"""Batches kept that no backward has used yet."""


class Relation(Enum):
    """How a backward relates to earlier ones in the same step."""

    MORE = "adds to them"
    AGAIN = "tries other parameters"
    INSTEAD = "takes their place"
    UNCLEAR = "nobody can tell"


def relation_to(watched: WatchedParameter) -> Relation:
    """How the backward that begins relates to the last one, judged by one parameter."""
    if watched.was_updated():
        return Relation.AGAIN
    lost = watched.lost_gradient()
    if lost is None:
        return Relation.UNCLEAR
    return Relation.INSTEAD if lost else Relation.MORE


class StepLoss:
    """The loss of the current step.

    Attributes:
        value: The loss so far, None if unknown.
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
        """Sets the loss given by the trainer; backwards no longer change it."""
        self.value, self._explicit = value, True

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        """A GradScaler scaled these losses; as roots of backward they are that factor too large."""
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
        """A backward ended.

        Args:
            roots: The tensors it started from.
            gradients: The gradients passed to it, one per root; torch replaces omitted ones by
                ones.
            relation: How it relates to earlier backwards of this step.
            keeps: It accumulated into `.grad`; otherwise (`torch.autograd.grad`) it counts only in
                a step without one that did.
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
            if scalar_of(gradient) != 1.0:  # the root is not a loss, or not all of it
                continue
            value = scalar_of(root)
            if value is not None and self._scaled:
                scale = next((scale for ref, scale in self._scaled if ref() is root), None)
                value = value / scale if scale else None
            if value is not None:
                total = value if total is None else total + value
        return total


class Batches:
    """Batch sizes that trained models were called with and that no backward has used yet.

    A backward uses the largest; smaller ones were an evaluation or parts of it. If several
    backwards follow, as after the micro-batches of a pipeline, each uses its own.
    """

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: list[int] = []

    def begin(self) -> None:
        """A step begins."""
        if self._pending:
            self._pending = []

    def called(self, rows: int) -> None:
        """A trained model is called with that many rows."""
        if len(self._pending) >= MOST_PENDING:
            self._pending.remove(min(self._pending))
        self._pending.append(rows)

    def backward(self) -> int | None:
        """A backward uses one of the batches. Returns: its rows."""
        if not self._pending:
            return None
        rows = max(self._pending)
        self._pending.remove(rows)
        return rows
