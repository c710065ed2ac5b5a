"""Collectives and steps that have not been added to the sums yet.

`flush` adds them in bulk, with numpy: one by one they cost the hub of a thousand ranks half a core,
in bulk a hundredth. Readers of the state flush it first, so they never see the difference.
"""

from __future__ import annotations

import msgspec

from dpwatch.run.state.series import WINDOW
from dpwatch.wire.calls import Calls
from dpwatch.wire.messages import Collective, Duration, Step, Steps

MOST_RECORDS = 1 << 18
MOST_STEPS = 3 * WINDOW // 8
"""Limits on pending calls and steps, and on the steps one rank may advance meanwhile, so that a
record for one of these steps still finds its sums."""


class Pending(msgspec.Struct):
    """Pending records, in order of arrival.

    Attributes:
        calls: Pairs of a rank and its calls.
        steps: Pairs of a rank and its steps.
        durations: Durations of calls that may be pending too.
        count: Number of calls and steps.
        is_due: Whether a limit is reached, so that they have to be flushed.
        since: By rank, the earliest step with pending records.
    """

    calls: list[tuple[int, Calls | Collective]] = []
    steps: list[tuple[int, Steps | Step]] = []
    durations: list[tuple[int, Duration]] = []
    count: int = 0
    is_due: bool = False
    since: dict[int, int] = {}

    def add_calls(self, rank: int, record: Calls | Collective) -> None:
        """Adds a rank's calls."""
        self.calls.append((rank, record))
        self._count(rank, record.step, record.count if isinstance(record, Calls) else 1)

    def add_steps(self, rank: int, record: Steps | Step) -> None:
        """Adds steps of a device whose lane exists."""
        self.steps.append((rank, record))
        self._count(rank, record.step, record.count if isinstance(record, Steps) else 1)

    def add_duration(self, rank: int, record: Duration) -> bool:
        """Adds a duration if its call may be pending. Returns False if it is not."""
        is_of_pending = record.step >= self.since.get(rank, record.step + 1)
        if is_of_pending:
            self.durations.append((rank, record))
        return is_of_pending

    def _count(self, rank: int, step: int, count: int) -> None:
        self.count += count
        since = self.since.setdefault(rank, step)
        if step < since:
            self.since[rank] = step
        self.is_due |= self.count >= MOST_RECORDS or step - since >= MOST_STEPS
