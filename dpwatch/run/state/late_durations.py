"""Adds durations that arrive after their collective's record, as NCCL's do.

They arrive in batches, many steps late and only for some steps. So the tallies of the last timed
steps are kept separately too: bandwidths are computed from them if no recent step was timed.
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


class LateDurations(msgspec.Struct):
    """Tallies of the last steps with late durations, by step."""

    tallies: dict[int, Tally] = {}

    def keep(self, step: int, tally: Tally) -> None:
        """Stores a step's current tally, except for the first step, which is not typical."""
        if step == 0:
            return
        self.tallies[step] = tally
        if len(self.tallies) > LATE_STEPS:
            del self.tallies[min(self.tallies)]


def add_late_duration(
    record: Duration,
    key: str,
    calls: dict[str, ByStep],
    late_calls: dict[str, LateDurations],
    late: LateDurations,
) -> bool:
    """Adds a duration to the tally of its call's step.

    Args:
        record: The duration.
        key: Its `op/group`.
        calls: The lane's tallies by key.
        late_calls: The lane's late tallies by key.
        late: The lane's late tallies over all keys.

    Returns:
        False if it times no call: the call's record was lost, all calls are timed already, or the
        record only says how long the caller waited.
    """
    by_step = calls.get(key)
    if by_step is None:
        return False
    at = by_step.find(record.step)
    (tally,) = by_step.over([record.step])
    if at is None:  # the step may be too old to have a tally
        return record.step < by_step.oldest
    cells = by_step.cells
    if record.blocked_ns is not None and tally.waited_calls < tally.calls:
        cells[at + WAITED_CALLS] += 1
        cells[at + WAITED_NS] += record.blocked_ns
    if record.duration_ns is None or tally.timed_calls >= tally.calls:
        return False
    cells[at + TIMED_CALLS] += 1
    cells[at + TIMED_NS] += record.duration_ns
    if record.completed_ns is not None:  # timed on the host, so only slightly late
        return True
    late_calls.setdefault(key, LateDurations()).keep(record.step, by_step.over([record.step])[0])
    late.keep(record.step, summed([each.over([record.step])[0] for each in calls.values()]))
    return True


def keep_latencies(latencies_ms: list[float], took_ms: list[float], before: int) -> None:
    """Appends latencies, and keeps the last `LATENCIES` to twice as many.

    Args:
        latencies_ms: The list to extend.
        took_ms: The last `2 * LATENCIES` new latencies, or all if there are fewer.
        before: Number of new latencies before those.
    """
    kept = total = len(latencies_ms) + before + len(took_ms)
    if total > 2 * LATENCIES:
        kept = LATENCIES + (total - 2 * LATENCIES - 1) % (LATENCIES + 1)
    latencies_ms.extend(took_ms)
    del latencies_ms[:-kept]
