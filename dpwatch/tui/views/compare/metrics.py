"""The metrics that runs are compared by, as stacked bars."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpwatch.run.derive.comparison import Figures, devices, on_core_share, others_median
from dpwatch.run.model.snapshot import Rank
from dpwatch.tui.draw.bar_segments import memory_parts, phase_parts
from dpwatch.tui.draw.palette import (
    COMM_KINDS,
    FILL_KINDS,
    MEMORY_KINDS,
    PHASE_KINDS,
    TRAFFIC_KINDS,
    WAIT_KINDS,
    Kind,
)
from dpwatch.tui.views.compare.columns import fill, keeps_most, kept_parts

Parts = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A stacked bar per run, all on one scale, with the column of its figure."""

    title: str
    kinds: Mapping[str, Kind]
    parts: Callable[[Figures], Parts]
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One way to compare all runs: bars, and further columns by their keys.

    `searched`: only available after a search.
    """

    name: str
    title: str
    bars: tuple[Bar, ...]
    keys: tuple[str, ...]
    searched: bool = False

    @property
    def short_title(self) -> str:
        """Its title up to the first colon or comma."""
        return re.split("[:,]", self.title, maxsplit=1)[0]


def _held(rank: Rank | None) -> Parts:
    return memory_parts(rank.memory) if rank else {}


def _traffic_of_first(figures: Figures) -> Parts:
    first = figures.first
    if first is None:
        return {}
    return {"sent": first.sent_bytes_per_step, "received": first.received_bytes_per_step}


def _traffic_of_others(figures: Figures) -> Parts:
    return {
        "sent": others_median(figures.run, lambda rank: rank.sent_bytes_per_step),
        "received": others_median(figures.run, lambda rank: rank.received_bytes_per_step),
    }


def _phases(figures: Figures) -> Parts:
    rows = devices(figures.run)
    slowest = max(rows, key=lambda rank: rank.step_ms.p50 or 0, default=None)
    return phase_parts(slowest.phases_ms) if slowest else {}


def _communication(figures: Figures) -> Parts:
    return {"exposed": figures.exposed_ms, "overlapped": _overlapped_ms(figures)}


def _waits(figures: Figures) -> Parts:
    """The step of the device that computes least, by what its thread does."""
    known = [rank for rank in devices(figures.run) if on_core_share(rank) is not None]
    rank = min(known, key=lambda rank: on_core_share(rank) or 0, default=None)
    if rank is None:
        return {}
    waits = {"queue": rank.runqueue_wait, "gil": rank.gil_wait, "idle": rank.idle}
    return {"compute": on_core_share(rank), **waits}


def _overlapped_ms(figures: Figures) -> float | None:
    if figures.comm_ms is None or figures.exposed_ms is None:
        return None
    return max(figures.comm_ms - figures.exposed_ms, 0.0)


def _filled(share: float | None) -> Parts:
    return {} if share is None else {"filled": share, "free": max(1.0 - share, 0.0)}


METRICS = (
    Metric(
        name="memory",
        title="Memory at the peak, by category: device 0 and the fullest other device",
        bars=(
            Bar(
                title="device 0",
                kinds=MEMORY_KINDS,
                parts=lambda f: _held(f.first),
                key="peak0",
            ),
            Bar(
                title="other",
                kinds=MEMORY_KINDS,
                parts=lambda f: _held(f.fullest),
                key="peak",
            ),
        ),
        keys=("peak_single", "peak_ratio"),
    ),
    Metric(
        name="kept",
        title="Kept between steps: on device 0 and on the other device that keeps most",
        bars=(
            Bar(
                title="device 0",
                kinds=MEMORY_KINDS,
                parts=lambda f: kept_parts(f.first),
                key="kept0",
            ),
            Bar(
                title="other",
                kinds=MEMORY_KINDS,
                parts=lambda f: kept_parts(keeps_most(f)),
                key="kept",
            ),
        ),
        keys=("kept_single",),
    ),
    Metric(
        name="traffic",
        title="Bytes sent and received per step: device 0 and the median of the others",
        bars=(
            Bar(
                title="device 0",
                kinds=TRAFFIC_KINDS,
                parts=_traffic_of_first,
                key="traffic0",
            ),
            Bar(
                title="median",
                kinds=TRAFFIC_KINDS,
                parts=_traffic_of_others,
                key="traffic",
            ),
        ),
        keys=("traffic_ratio",),
    ),
    Metric(
        name="time",
        title="A step's phases on the slowest device, and the throughput",
        bars=(Bar(title="phases", kinds=PHASE_KINDS, parts=_phases, key="step"),),
        keys=("rate", "rate_single"),
    ),
    Metric(
        name="comm",
        title="Communication per step: what compute waits for, and what it hides",
        bars=(Bar(title="exposed, hidden", kinds=COMM_KINDS, parts=_communication, key="exposed"),),
        keys=("overlapped", "step"),
    ),
    Metric(
        name="waits",
        title="What the thread does in a step, on the device that computes least",
        bars=(Bar(title="compute and waits", kinds=WAIT_KINDS, parts=_waits, key="gil"),),
        keys=("idle", "queue"),
    ),
    Metric(
        name="batch",
        title="At the largest batch per device that fits: how full memory is",
        bars=(
            Bar(
                title="first full",
                kinds=FILL_KINDS,
                parts=lambda f: _filled(fill(f, lambda found: found.limiting)),
                key="fill",
            ),
            Bar(
                title="fullest",
                kinds=FILL_KINDS,
                parts=lambda f: _filled(fill(f, lambda found: found.fullest_other)),
                key="fill_other",
            ),
        ),
        keys=("batch", "who"),
        searched=True,
    ),
)
"""The metrics in the order of the key `m`; those of a search come last."""
