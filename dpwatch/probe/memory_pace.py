"""How often to sample: measures what sampled steps cost and spaces them to keep the mean small."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

COST_SHARE = 0.008
"""Mean cost aimed at, as a share of training time: below the promised 1 %."""

FIRST_STEPS = (1, 2)
"""Always sampled: optimizer state exists after step 0, and DDP rebuilds its buckets in step 1."""

MIN_INTERVAL = 10
MAX_INTERVAL = 10 * 2**8

_ENOUGH = 4
"""Plain steps to compare with."""


class Pace:
    """Decides which steps are sampled.

    Steps are sampled at multiples of an interval that only doubles and halves, so that ranks which
    measure differently still sample many steps together, and one rank's sampled step does not
    make the others wait at another time.

    Attributes:
        interval: Steps from one sampled step to the next.
        missed: A step that was due could not be sampled: the next one is due.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.interval = MIN_INTERVAL
        self.missed = False
        self._clock_ns = clock_ns
        self._plain_ns: deque[int] = deque(maxlen=32)
        self._sampled_ns: deque[int] = deque(maxlen=5)
        self._began_ns: int | None = None
        self._ended_ns = 0
        self._ahead_ns = 0
        self._steps = 0

    def due(self, step: int) -> bool:
        """Whether to sample this step."""
        return self.missed or step in FIRST_STEPS or (step > 2 and step % self.interval == 0)

    def begin(self) -> None:
        """A step begins."""
        self._began_ns = self._clock_ns()

    def end(self) -> None:
        """Its training has ended; what follows until `close` is the ledger's own work."""
        self._ended_ns = self._clock_ns()

    def close(self, *, sampled: bool, prepared: bool) -> None:
        """The ledger's work after the step is done.

        Args:
            sampled: The step was sampled: its own extra time and that work are the cost.
            prepared: That work was (also) for the next step, which will be sampled.
        """
        if self._began_ns is None:
            return
        self._steps += 1
        step_ns = self._ended_ns - self._began_ns
        work_ns = self._clock_ns() - self._ended_ns if sampled or prepared else 0
        if sampled:
            if self._steps > 2:  # the first sampled step also pays for filling caches
                self._sampled_ns.append(step_ns + work_ns + self._ahead_ns)
                self._adapt()
        elif self._steps > 1:
            self._plain_ns.append(step_ns)
            if len(self._plain_ns) == _ENOUGH:  # the first samples' cost can be told from here on
                self._adapt()
        self._ahead_ns = work_ns if prepared and not sampled else 0

    def cost_share(self) -> float | None:
        """Extra time of a sampled step, as a share of a plain one; None before both were seen."""
        if len(self._plain_ns) < _ENOUGH or not self._sampled_ns:
            return None
        plain = statistics.median(self._plain_ns)
        return max(0.0, statistics.median(self._sampled_ns) / plain - 1) if plain else None

    def _adapt(self) -> None:
        share = self.cost_share()
        if share is None:
            return
        self.interval = MIN_INTERVAL
        while share / self.interval > COST_SHARE and self.interval < MAX_INTERVAL:
            self.interval *= 2
