"""`memory_growth`: what is held between steps grows and grows, as with a leak.

Rule: over at least 24 samples and 40 steps after the first ten, the memory held at steps' ends
grew by at least 5 % and 1 MiB, in each third of that time (its median above the one before), and
in no more than a tenth of the samples it fell below what it was a third earlier. Where the probe
knows only the process's memory (`rss`), at least 64 MiB.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.hub.curves import Thinned
from dpwatch.hub.diagnose.finding import Finding, mebibytes
from dpwatch.hub.parts import LaneState
from dpwatch.hub.series import median
from dpwatch.hub.snapshot import Run
from dpwatch.hub.state import RunState

SETTLED_STEP = 10
LEAST_SAMPLES = 24
LEAST_STEPS = 40
GROWTH = 0.05
LEAST_BYTES = 1 << 20
LEAST_RSS_BYTES = 64 << 20
FALLS = 0.1


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on the device that has grown most."""
    grown = [
        (growth, lane)
        for rank in state.ranks.values()
        for lane in rank.lanes.values()
        if (growth := _growth(lane)) is not None
    ]
    if not grown:
        return None
    (bytes_per_step, began, first, last), lane = max(grown, key=lambda item: item[0][0])
    row = next(r for r in run.ranks if r.rank == lane.rank and _is_row(state, lane, r.device))
    capacity = row.memory.capacity_bytes
    left = None if capacity is None else max(0, capacity - (row.memory.peak_bytes or last))
    steps_left = None if left is None else int(left / bytes_per_step)
    # Of the steps that the ledger does not sample it does not see what they leave behind.
    least = "at least " if lane.memory and lane.memory.source == "ledger" else ""
    until = "" if steps_left is None else f"; at this pace it is full in {steps_left:,} steps"
    soon = steps_left is not None and steps_left < 10 * max(run.steps, 1)
    return Finding(
        kind="memory_growth",
        severity="warning" if soon else "info",
        ranks=sorted({lane.rank for _, lane in grown}),
        text=f"What {row.device} of rank {lane.rank} holds between steps has grown from "
        f"{mebibytes(first)} to {mebibytes(last)}, by {least}{mebibytes(bytes_per_step)} a step, "
        f"and goes on{until}. Usually something keeps tensors alive: losses appended without "
        ".item() or .detach(), a list of outputs, retain_graph.",
        evidence={
            "device": row.device,
            "bytes_per_step": int(bytes_per_step),
            "from_bytes": first,
            "to_bytes": last,
            "steps_until_full": steps_left,
            "source": lane.memory.source if lane.memory else None,
        },
        began=began,
    )


def _is_row(state: RunState, lane: LaneState, device: str) -> bool:
    hello = state.ranks[lane.rank].hello
    names = [each.name for each in hello.devices] if hello else []
    return lane.device >= len(names) or names[lane.device] == device


def _growth(lane: LaneState) -> tuple[float, int, int, int] | None:
    """Bytes a step, first step, bytes there and now; None if it does not grow."""
    steps, values = _settled(lane.held_bytes)
    if len(steps) < LEAST_SAMPLES or steps[-1] - steps[0] < LEAST_STEPS:
        return None
    if values[-1] <= values[0]:
        return None
    third = len(steps) // 3
    parts = [values[:third], values[third : 2 * third], values[2 * third :]]
    low, middle, high = (median(part) or 0.0 for part in parts)
    falls = sum(1 for i in range(third, len(values)) if values[i] <= values[i - third])
    source = lane.memory.source if lane.memory else ""
    least = LEAST_RSS_BYTES if source == "rss" else LEAST_BYTES
    grown = high - low
    if not low < middle < high or grown < max(least, GROWTH * low) or falls > FALLS * len(values):
        return None
    if (middle - low) < grown / 4 or (high - middle) < grown / 4:
        return None  # a jump, such as the first evaluation's, and not a slope
    apart = (median(steps[2 * third :]) or 0.0) - (median(steps[:third]) or 0.0)
    pace = grown / max(1.0, apart)
    return pace, steps[0], int(values[0]), int(values[-1])


def _settled(series: Thinned) -> tuple[Sequence[int], Sequence[float]]:
    """Without the first steps, which make optimizer state and fill caches; the later half."""
    start = next((i for i, s in enumerate(series.steps) if s >= SETTLED_STEP), len(series.steps))
    half = max(start, len(series.steps) // 2 if len(series.steps) >= 2 * LEAST_SAMPLES else start)
    return series.steps[half:], series.values[half:]
