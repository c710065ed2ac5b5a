"""Detects steps that end without an observed optimizer step.

A compiled `optimizer.step()` runs none of its hooks, and some scripts update parameters by hand.
All that can be observed then is a backward, a change of parameters, and the next event. One such
change proves nothing: sharpness-aware minimization moves parameters between two backwards of a
step. So only several in a row, without an optimizer step in between, are taken as steps.
"""

from __future__ import annotations

ENOUGH = 3
"""Changes in a row, and more than twice as many as a step of this script has backwards."""


class UnhookedUpdates:
    """Counts changes of parameters that no optimizer step explains.

    Attributes:
        engaged: Such changes end steps.
    """

    __slots__ = ("_first_at", "_most_backwards", "_pending", "_seen_at", "engaged")

    def __init__(self) -> None:
        self.engaged = False
        self._pending = 0
        self._first_at = self._seen_at = 0
        self._most_backwards = 0

    @property
    def patience(self) -> int:
        """Number of backwards without an optimizer step that is not suspicious."""
        return 4 + 2 * self._most_backwards

    def saw_step(self, backwards: int) -> None:
        """A step with that many backwards was observed."""
        self._most_backwards = max(self._most_backwards, backwards)

    def optimizer_ended(self, backwards: int) -> None:
        """An optimizer step ended a step with that many backwards."""
        self.engaged = False
        self._pending = self._seen_at = 0
        self.saw_step(backwards)

    def ended(self, changed: bool, backwards: int) -> int:
        """Number of steps that have ended, now that something else begins.

        Args:
            changed: Whether parameters have changed since the last backward.
            backwards: Number of backwards in the current step.
        """
        if not changed:
            return 0
        if self.engaged:
            return 1
        if backwards == self._seen_at:  # already counted, at the event before this one
            return 0
        self._first_at = self._first_at if self._pending else backwards
        self._seen_at = backwards
        self._pending += 1
        if self._pending < max(ENOUGH, 2 * self._most_backwards + 1):
            return 0
        self.engaged = True
        apart = (backwards - self._first_at) / (self._pending - 1)
        self._pending = self._seen_at = 0
        return round(backwards / apart)  # some may have ended in skipped steps
