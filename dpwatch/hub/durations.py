"""Durations that come after their collective's record, as NCCL's do: booked where they belong.

They come in batches, many steps late and for some of the steps only. So the tallies of the last
steps that have any are kept apart as well: figures per time are taken from these where none of the
steps just done has been timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec

from dpwatch.hub.series import ByStep, Tally, keep_last

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
        self.tallies[step] = msgspec.structs.replace(tally)
        if len(self.tallies) > LATE_STEPS:
            del self.tallies[min(self.tallies)]


def book(record: Duration, by_step: ByStep, late: Late) -> bool:
    """Counts a call as timed in its step's tally.

    Returns:
        False if it belongs to no call: its own record never came, or all are timed already.
    """
    tally = by_step.tallies.get(record.step)
    if tally is None:  # of a step too long ago to have one?
        return record.step < min(by_step.tallies, default=0)
    if tally.timed_calls >= tally.calls:
        return False
    tally.timed_calls += 1
    tally.timed_ns += record.duration_ns
    late.keep(record.step, tally)
    return True


def keep_latency(latencies_ms: list[float], took_ns: int) -> None:
    """Adds to the latencies of the last calls."""
    latencies_ms.append(took_ns / 1e6)
    keep_last(cast("list[object]", latencies_ms), LATENCIES)
