"""A scenario's result as one sentence with the figures of its runs; "" if a figure is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dpwatch.run.derive.comparison import Figures, figures, largest, peak_bytes
from dpwatch.run.model.snapshot import Run
from dpwatch.tui.draw import format as fmt

Runs = Sequence[Run]
"""A scenario's runs, in the order of its variants."""


def lesson(scenario: str, runs: Runs) -> str:
    """The sentence for the scenario of that name."""
    return _LESSONS[scenario](runs)


def _out_of_memory(runs: Runs) -> str:
    """The last two of three: the same batch under dp, which runs out of memory, and under ddp."""
    if len(runs) < 3:
        return ""
    dp, ddp = figures(runs[1]), figures(runs[2])
    first, others = _fill(dp, dp.peak0), _fill(dp, dp.peak_others_max)
    fullest = _fill(ddp, largest(ddp.run, peak_bytes))
    states = (dp.run.state, ddp.run.state)
    if states != ("failed", "finished") or None in (first, others, fullest):
        return ""
    batch = dp.run.title.partition(" · ")[0]
    return (
        f"dp runs out of memory at {batch} with device 0 {fmt.share(first)} full and the others "
        f"{fmt.share(others)} at most; ddp trains {batch} with no device over {fmt.share(fullest)}."
    )


def _fill(seen: Figures, peak: float | None) -> float | None:
    capacity = seen.first.memory.capacity_bytes if seen.first else None
    return peak / capacity if peak is not None and capacity else None


def _straggler(runs: Runs) -> str:
    """A run without a late rank, and one with."""
    if len(runs) < 2:
        return ""
    alike, late = (figures(run).step_ms for run in runs[:2])
    named = [d.ranks[0] for d in runs[1].diagnoses if d.kind == "straggler" and d.ranks]
    if alike is None or late is None or not named:
        return ""
    return (
        f"Rank {named[0]} is late, and all ranks wait for it: a step takes {fmt.millis(late)} on "
        f"every rank, and {fmt.millis(alike)} where none is late."
    )


def _gil(runs: Runs) -> str:
    """Threads under dp, processes under ddp."""
    if len(runs) < 2:
        return ""
    threads, processes = (figures(run).gil_wait for run in runs[:2])
    if threads is None or processes is None:
        return ""
    return (
        f"dp's threads share one GIL and wait for it up to {fmt.share(threads)} of a step; "
        f"ddp's processes, each with its own, {fmt.share(processes)}."
    )


def _overlap(runs: Runs) -> str:
    """All-reduce during backward, and after it."""
    if len(runs) < 2:
        return ""
    during, after = (figures(run) for run in runs[:2])
    if None in (during.exposed_ms, after.exposed_ms, during.exposed_share, after.exposed_share):
        return ""
    return (
        f"All-reduced after backward, compute waits {fmt.millis(after.exposed_ms)} a step for "
        f"gradients, {fmt.share(after.exposed_share)} of it; all-reduced during backward "
        f"{fmt.millis(during.exposed_ms)}, {fmt.share(during.exposed_share)}."
    )


def _reshard(runs: Runs) -> str:
    """Parameters that are gathered twice per step, and parameters that are kept."""
    if len(runs) < 2:
        return ""
    again, kept = (figures(run) for run in runs[:2])
    if None in (again.traffic0, kept.traffic0, again.peak0, kept.peak0):
        return ""
    return (
        f"Kept for backward, parameters are gathered once a step, not twice: each device moves "
        f"{fmt.size(kept.traffic0)} instead of {fmt.size(again.traffic0)}, and peaks at "
        f"{fmt.size(kept.peak0)} instead of {fmt.size(again.peak0)}."
    )


_LESSONS: Mapping[str, Callable[[Runs], str]] = {
    "oom": _out_of_memory,
    "straggler": _straggler,
    "gil": _gil,
    "overlap": _overlap,
    "reshard": _reshard,
}
