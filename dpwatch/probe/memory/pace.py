"""Decides which steps to sample: measures what sampling costs and keeps its mean cost small."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

from dpwatch.probe.steps import sampling

DIRECT_SHARE = 0.004
"""Target of the mean cost where it is measured directly, as a share of training time …"""

MOST_SHARE = 0.005
"""… and the share that it never exceeds, except for the first sample."""

COST_SHARE = 0.008
"""The same where a sampled step is compared with others: below the promised 1 %."""

FIRST_STEPS = (1, 2)
"""Always sampled: optimizer state exists after step 0, and DDP rebuilds its buckets in step 1."""

MIN_INTERVAL = 10
MAX_INTERVAL = 10 * 2**8

MOST_DOUBLINGS = 20
"""With direct measurement, limit of doublings of ten steps, which is never reached."""

_ENOUGH = 4
"""Number of plain steps to compare with."""


class DirectPace:
    """Spaces samples whose cost is measured directly: reading and walking while training pauses.

    The second step of a pair is sampled, which `sampling` chooses by number alone: in one block of
    10, 20, 40, … steps. So ranks with different costs still sample many steps together, and skipped
    steps are left alone.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._first: tuple[int, int] | None = None
        self._costs_ns: deque[int] = deque(maxlen=5)
        self._spent_ns = 0

    def due(self, step: int) -> bool:
        """Whether to sample this step, which begins now."""
        if self._first is None:
            self._first = step, self._clock_ns()
        if not self._costs_ns:
            return step >= FIRST_STEPS[0]
        if step not in FIRST_STEPS and not sampling.is_second(step):
            return False
        elapsed_ns = self._clock_ns() - self._first[1]
        cost_ns = statistics.median(self._costs_ns)
        if self._spent_ns + cost_ns > MOST_SHARE * elapsed_ns:
            return False
        return step in FIRST_STEPS or self._is_turn(step, cost_ns, elapsed_ns)

    def spent(self, step: int, cost_ns: int) -> None:
        """A sampled step has ended; sampling took that much of its time."""
        self._costs_ns.append(cost_ns)
        self._spent_ns += cost_ns

    def _is_turn(self, step: int, cost_ns: float, elapsed_ns: int) -> bool:
        assert self._first is not None
        block_ns = sampling.BLOCK * elapsed_ns / max(1, step - self._first[0])
        doublings = 0
        while cost_ns > DIRECT_SHARE * block_ns * 2**doublings and doublings < MOST_DOUBLINGS:
            doublings += 1
        return sampling.next_pair(step - 1, doublings) == step - 1


class Pace:
    """Decides which steps are sampled where sampling slows down the step itself.

    Steps are sampled at multiples of an interval that only doubles and halves. So ranks with
    different costs still sample many steps together, and one rank's sampled step does not delay the
    others at another time.

    Attributes:
        interval: Steps from one sampled step to the next.
        missed: A due step could not be sampled, so the next one is due.
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
        """The step's training has ended; what follows until `close` is the ledger's own work."""
        self._ended_ns = self._clock_ns()

    def close(self, *, sampled: bool, prepared: bool) -> None:
        """The ledger's work after the step has ended.

        Args:
            sampled: The step was sampled: its extra time and that work are the cost.
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
            if len(self._plain_ns) == _ENOUGH:  # from here on the first samples' cost is known
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
