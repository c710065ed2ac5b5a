"""Durations that come after their collective's record, as NCCL's do: booked where they belong.

They come in batches, many steps late and for some of the steps only. So the tallies of the last
steps that have any are kept apart as well: figures per time are taken from these where none of the
steps just done has been timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dpwatch.run.state.series import (
    TIMED_CALLS,
    TIMED_NS,
    WAITED_CALLS,
    WAITED_NS,
    ByStep,
    Tally,
    summed,
)

if TYPE_CHECKING:
    from dpwatch.wire.messages import Duration

LATENCIES = 512
LATE_STEPS = 64


class Late(msgspec.Struct):
    """Tallies of the last steps some of whose calls were timed late."""

    tallies: dict[int, Tally] = {}

    def keep(self, step: int, tally: Tally) -> None:
        """Takes a step's tally as it is now; the first step is unlike the rest."""
        if step == 0:
            return
        self.tallies[step] = tally
        if len(self.tallies) > LATE_STEPS:
            del self.tallies[min(self.tallies)]


def book(
    record: Duration, key: str, calls: dict[str, ByStep], late_calls: dict[str, Late], late: Late
) -> bool:
    """Counts a call of a lane's as timed in its step's tally.

    Args:
        record: What has come.
        key: Of its op and group.
        calls: The lane's collectives, by such keys.
        late_calls: Their late tallies, and …
        late: … those of all of them together.

    Returns:
        False if it times no call: its own record never came, all are timed already, or it only
        says how long its caller waited.
    """
    by_step = calls.get(key)
    if by_step is None:
        return False
    at = by_step.find(record.step)
    (tally,) = by_step.over([record.step])
    if at is None:  # of a step too long ago to have a tally?
        return record.step < by_step.oldest
    cells = by_step.cells
    if record.blocked_ns is not None and tally.waited_calls < tally.calls:
        cells[at + WAITED_CALLS] += 1
        cells[at + WAITED_NS] += record.blocked_ns
    if record.duration_ns is None or tally.timed_calls >= tally.calls:
        return False
    cells[at + TIMED_CALLS] += 1
    cells[at + TIMED_NS] += record.duration_ns
    if record.completed_ns is not None:  # on the host, only a moment later than the others
        return True
    late_calls.setdefault(key, Late()).keep(record.step, by_step.over([record.step])[0])
    late.keep(record.step, summed([each.over([record.step])[0] for each in calls.values()]))
    return True


def keep_latencies(latencies_ms: list[float], took_ms: list[float], before: int) -> None:
    """Adds to the latencies of the last calls, between one and two times `LATENCIES` of them.

    Args:
        latencies_ms: What is kept.
        took_ms: The last `2 * LATENCIES`, or all that there are.
        before: How many came before those.
    """
    kept = total = len(latencies_ms) + before + len(took_ms)
    if total > 2 * LATENCIES:
        kept = LATENCIES + (total - 2 * LATENCIES - 1) % (LATENCIES + 1)
    latencies_ms.extend(took_ms)
    del latencies_ms[:-kept]
