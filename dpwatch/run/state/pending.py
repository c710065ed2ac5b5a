"""Collectives and steps that are not in the sums yet: of many ranks, those of some seconds.

One by one they cost a hub of a thousand ranks half a core; together, by numpy (`settling`), a
hundredth. Nobody sees the difference: who reads the state has what is pending settled before. Of
few ranks, and where there is no numpy, each is booked as it comes (`booking`).
"""

from __future__ import annotations

import msgspec

from dpwatch.run.state.parts import RankState
from dpwatch.run.state.series import WINDOW
from dpwatch.wire.calls import Calls
from dpwatch.wire.messages import AnyRecord, Collective, Duration, Step, Steps

MANY = 32
"""Of more ranks than this all is derived together, and a viewer gets looks."""

MOST_RECORDS = 1 << 18
MOST_STEPS = 3 * WINDOW // 8
"""Pending records, and steps of a rank: what comes for one later finds its sums still kept."""


class Pending(msgspec.Struct):
    """What has come, in its order.

    Attributes:
        calls: By which rank, and what.
        steps: The same of steps.
        durations: Of calls that are pending too, or came after such.
        count: How many calls and steps these are.
        is_due: There are so many that they are to be settled.
        since: By rank, the earliest step that it has something pending of.
    """

    calls: list[tuple[int, Calls | Collective]] = []
    steps: list[tuple[int, Steps | Step]] = []
    durations: list[tuple[int, Duration]] = []
    count: int = 0
    is_due: bool = False
    since: dict[int, int] = {}

    def take(self, rank: RankState, record: AnyRecord) -> bool:
        """Keeps a record for later. Returns: whether it did; else it is to be booked now."""
        if isinstance(record, Duration):
            if record.step < self.since.get(rank.rank, record.step + 1):
                return False
            self.durations.append((rank.rank, record))
            return True
        if isinstance(record, Calls | Collective):
            self.calls.append((rank.rank, record))
        elif isinstance(record, Steps | Step) and record.device in rank.lanes:
            self.steps.append((rank.rank, record))
        else:
            return False
        self.count += record.count if isinstance(record, Calls | Steps) else 1
        since = self.since.setdefault(rank.rank, record.step)
        if record.step < since:
            self.since[rank.rank] = record.step
        self.is_due |= self.count >= MOST_RECORDS or record.step - since >= MOST_STEPS
        return True
