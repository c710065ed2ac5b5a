"""`memory_growth`: memory held between steps keeps growing, as with a leak.

Rule: over at least 8 samples and 40 steps after the first ten, the memory held at the end of steps
grew by at least 5 % and 1 MiB, in each third of that time (its median above the one before), and
at most a tenth of the samples were below the one a third earlier. If only the process's resident
size is known, at least 64 MiB. Growth in proportion to growing batches doesn't count. The rate is
computed between the medians of the first and the last third.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpwatch.quantiles import median
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.curves import Thinned
from dpwatch.run.state.parts import LaneState
from dpwatch.run.state.run_state import RunState
from dpwatch.units import size

SETTLED_STEP = 10
LEAST_SAMPLES = 8
LEAST_STEPS = 40
HALVED_SAMPLES = 48
"""From this many samples on only the later half counts, so that past growth is forgotten."""

GROWTH = 0.05
LEAST_BYTES = 1 << 20
LEAST_RSS_BYTES = 64 << 20
FALLS = 0.1
PROPORTION = 1.25
"""Growth up to this many times the growth of the batches is attributed to these."""

SOON = 10
"""A warning if the device is full within this many times the steps done so far."""

_ADVICE = (
    "Look for tensors kept from step to step: losses or outputs appended without .item() or "
    ".detach(), gathered predictions, retain_graph. A cache or replay buffer that is still filling "
    "looks the same."
)


class Growth(msgspec.Struct, frozen=True):
    """How a device's memory has grown: bytes per step, since when, from what to what."""

    bytes_per_step: float
    began: int
    first: int
    last: int


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
    growth, lane = max(grown, key=lambda item: item[0].bytes_per_step)
    row = next(r for r in run.ranks if r.rank == lane.rank and _is_row(state, lane, r.device))
    capacity = row.memory.capacity_bytes
    left = None if capacity is None else max(0, capacity - (row.memory.peak_bytes or growth.last))
    steps_left = None if left is None else int(left / growth.bytes_per_step)
    # The ledger doesn't see what unsampled steps leave behind.
    least = "at least " if lane.memory and lane.memory.source == "ledger" else ""
    until = "" if steps_left is None else f"; at this rate it is full in {steps_left:,} steps"
    soon = steps_left is not None and steps_left < SOON * max(run.steps, 1)
    ranks = sorted({lane.rank for _, lane in grown})
    alone = len(ranks) == 1 and len(state.ranks) > 1
    only = ", on this rank only" if alone else ""
    return Finding(
        kind="memory_growth",
        severity="warning" if soon else "info",
        ranks=ranks,
        text=f"Memory that rank {lane.rank} ({row.device}) holds between steps grows by {least}"
        f"{size(growth.bytes_per_step)} per step{only}: from {size(growth.first)} in step "
        f"{growth.began} to {size(growth.last)} now{until}. {_ADVICE}",
        evidence={
            "device": row.device,
            "bytes_per_step": int(growth.bytes_per_step),
            "from_bytes": growth.first,
            "to_bytes": growth.last,
            "steps_until_full": steps_left,
            "source": lane.held_from or None,
        },
        began=growth.began,
    )


def _is_row(state: RunState, lane: LaneState, device: str) -> bool:
    hello = state.ranks[lane.rank].hello
    names = [each.name for each in hello.devices] if hello else []
    return lane.device >= len(names) or names[lane.device] == device


def _growth(lane: LaneState) -> Growth | None:
    """How a device's memory grows, None if it doesn't."""
    steps, values = _settled(lane.held_bytes)
    if len(steps) < LEAST_SAMPLES or steps[-1] - steps[0] < LEAST_STEPS:
        return None
    if values[-1] <= values[0]:
        return None
    third = len(steps) // 3
    low, middle, high = _medians(values)
    falls = sum(1 for i in range(third, len(values)) if values[i] <= values[i - third])
    least = LEAST_RSS_BYTES if lane.held_from == "rss" else LEAST_BYTES
    grown = high - low
    if not low < middle < high or grown < max(least, GROWTH * low) or falls > FALLS * len(values):
        return None
    if (middle - low) < grown / 4 or (high - middle) < grown / 4:
        return None  # a jump, such as the first evaluation, not a slope
    if grown <= PROPORTION * low * (_batches_grown(lane, steps[0]) - 1):
        return None
    first, _, last = _medians(steps)
    return Growth(grown / max(1.0, last - first), steps[0], int(values[0]), int(values[-1]))


def _medians(values: Sequence[float]) -> tuple[float, float, float]:
    """The median of each third."""
    third = len(values) // 3
    parts = values[:third], values[third : 2 * third], values[2 * third :]
    low, middle, high = (median(part) or 0.0 for part in parts)
    return low, middle, high


def _batches_grown(lane: LaneState, since: int) -> float:
    """How many times larger batches have become over that time; 1.0 if unknown."""
    pairs = zip(lane.held_samples.steps, lane.held_samples.values, strict=True)
    sizes = [size for step, size in pairs if step >= since and size > 0]
    if len(sizes) < LEAST_SAMPLES:
        return 1.0
    low, _, high = _medians(sizes)
    return max(1.0, high / low) if low else 1.0


def _settled(series: Thinned) -> tuple[Sequence[int], Sequence[float]]:
    """Without the first steps, which create optimizer state and fill caches; the later half."""
    start = next((i for i, s in enumerate(series.steps) if s >= SETTLED_STEP), len(series.steps))
    half = max(start, len(series.steps) // 2 if len(series.steps) >= HALVED_SAMPLES else start)
    return series.steps[half:], series.values[half:]
