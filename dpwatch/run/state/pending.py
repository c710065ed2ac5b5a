"""Collectives and steps that are not in the sums yet.

They are put there together, by numpy (`flush`): one by one they cost a hub of a thousand ranks half
a core, together a hundredth. Nobody sees the difference: who reads the state flushes it before.
"""

from __future__ import annotations

import msgspec

from dpwatch.run.state.series import WINDOW
from dpwatch.wire.calls import Calls
from dpwatch.wire.messages import Collective, Duration, Step, Steps

MOST_RECORDS = 1 << 18
MOST_STEPS = 3 * WINDOW // 8
"""Pending calls and steps, and steps of a rank: what comes for one later finds its sums kept."""


class Pending(msgspec.Struct):
    """What has come, in its order.

    Attributes:
        calls: By which rank, and what.
        steps: The same of steps.
        durations: Of calls that are pending too, or came after such.
        count: How many calls and steps these are.
        is_due: There are so many that they are to be flushed.
        since: By rank, the earliest step that it has something pending of.
    """

    calls: list[tuple[int, Calls | Collective]] = []
    steps: list[tuple[int, Steps | Step]] = []
    durations: list[tuple[int, Duration]] = []
    count: int = 0
    is_due: bool = False
    since: dict[int, int] = {}

    def add_calls(self, rank: int, record: Calls | Collective) -> None:
        """What a rank called."""
        self.calls.append((rank, record))
        self._count(rank, record.step, record.count if isinstance(record, Calls) else 1)

    def add_steps(self, rank: int, record: Steps | Step) -> None:
        """Steps of a device that its rank's state has a lane for."""
        self.steps.append((rank, record))
        self._count(rank, record.step, record.count if isinstance(record, Steps) else 1)

    def add_duration(self, rank: int, record: Duration) -> bool:
        """Returns: whether it may be of a pending call; else it is to be added to the sums."""
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
