"""Steps that end where no optimizer is heard of.

A compiled `optimizer.step()` runs none of its hooks, and some scripts update parameters by hand.
Then a backward, a change of parameters, and the next event are all that is seen. Such a change
alone is no proof: sharpness-aware minimisation moves parameters between two backwards of a step.
So only several of them in a row, without an optimizer's step between, are taken for steps.
"""

from __future__ import annotations

ENOUGH = 3
"""Changes in a row, and twice as many as a step of this script has backwards."""


class UnhookedUpdates:
    """Counts changes of parameters that no optimizer's step explains.

    Attributes:
        engaged: They end steps.
    """

    __slots__ = ("_first_at", "_most_backwards", "_pending", "_seen_at", "engaged")

    def __init__(self) -> None:
        self.engaged = False
        self._pending = 0
        self._first_at = self._seen_at = 0
        self._most_backwards = 0

    @property
    def patience(self) -> int:
        """Backwards without an optimizer's step that are nothing to wonder at."""
        return 4 + 2 * self._most_backwards

    def saw_step(self, backwards: int) -> None:
        """A step had so many backwards."""
        self._most_backwards = max(self._most_backwards, backwards)

    def optimizer_ended(self, backwards: int) -> None:
        """An optimizer's step has ended a step with so many backwards."""
        self.engaged = False
        self._pending = self._seen_at = 0
        self.saw_step(backwards)

    def ended(self, changed: bool, backwards: int) -> int:
        """How many steps have ended, now that something else begins.

        Args:
            changed: Parameters have, since the last backward.
            backwards: In the step under way.
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
        return round(backwards / apart)  # some may have passed while steps were only counted
