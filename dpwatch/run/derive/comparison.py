"""Runs side by side: the few figures by which strategies are compared, from each run's own.

The compare screen, the Markdown table and the text output all read these, so they can't disagree.
A figure that is not known is None. A parameter server's host is no device: it counts in no figure
of the devices and has its own.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpwatch.run.model.largest_batch import LargestBatch
from dpwatch.run.model.snapshot import Rank, Run

HOST = "host"
"""Device name of the row that stands for a parameter server in host memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a run is compared by. Bytes are bytes, `_ms` milliseconds, shares 0..1.

    Attributes:
        first: Device 0's row, None before a device is known.
        fullest: The row with the highest peak among the other devices.
        host: The row of a parameter server in host memory.
        peak0: Device 0's memory peak.
        peak_others_max: The highest peak among the other devices …
        peak_others_min: … the lowest …
        peak_others_median: … and the median, all None unless every one is known.
        traffic0: Bytes device 0 sends and receives in a step.
        traffic_others: The median over the other devices, None unless all of them are known.
        step_ms: The slowest device's typical step.
        samples_per_s: Of the whole run.
        comm_ms: The most time a device's communication takes in a step, hidden or not.
        exposed_ms: The most time a device's compute waits for communication in a step.
        exposed_share: Of the step; the highest of all devices.
        overlapped_share: Of communication's time, what compute hides; the lowest of all devices.
        gil_wait, idle, runqueue_wait: Shares of the step; the highest of all devices.
        largest_batch: The largest with which the run fits, where it was looked for.
        loss: The last one.
        cores_short: Whether times measure the host's lack of cores rather than the strategy.
    """

    run: Run
    first: Rank | None
    fullest: Rank | None
    host: Rank | None
    peak0: int | None
    peak_others_max: float | None
    peak_others_min: float | None
    peak_others_median: float | None
    traffic0: int | None
    traffic_others: float | None
    step_ms: float | None
    samples_per_s: float | None
    comm_ms: float | None
    exposed_ms: float | None
    exposed_share: float | None
    overlapped_share: float | None
    gil_wait: float | None
    idle: float | None
    runqueue_wait: float | None
    largest_batch: LargestBatch | None
    loss: float | None
    cores_short: bool


def figures(run: Run, largest_batch: LargestBatch | None = None) -> Figures:
    """A run's figures for comparison.

    Args:
        run: Any run, at any moment.
        largest_batch: Where somebody has looked for it: a run alone does not tell.
    """
    rows = devices(run)
    first, others = (rows[0] if rows else None), rows[1:]
    peaks = _all_known(peak_bytes(row) for row in others)
    return Figures(
        run=run,
        first=first,
        fullest=max(others, key=lambda row: peak_bytes(row) or 0, default=None),
        host=next((row for row in run.ranks if row.device == HOST), None),
        peak0=peak_bytes(first) if first else None,
        peak_others_max=max(peaks, default=None),
        peak_others_min=min(peaks, default=None),
        peak_others_median=others_median(run, peak_bytes),
        traffic0=traffic_bytes(first) if first else None,
        traffic_others=others_median(run, traffic_bytes),
        step_ms=largest(run, lambda row: row.step_ms.p50),
        samples_per_s=run.samples_per_s,
        comm_ms=largest(run, lambda row: row.comm_ms.total),
        exposed_ms=largest(run, lambda row: row.comm_ms.exposed),
        exposed_share=largest(run, exposed_share),
        overlapped_share=_smallest(_overlapped_share(row) for row in rows),
        gil_wait=largest(run, lambda row: row.gil_wait),
        idle=largest(run, lambda row: row.idle),
        runqueue_wait=largest(run, lambda row: row.runqueue_wait),
        largest_batch=largest_batch,
        loss=run.loss.last,
        cores_short=any(found.kind == "cpu_oversubscribed" for found in run.diagnoses),
    )


class Named(Protocol):
    """What has a strategy and a title: a run, or the configuration of one."""

    @property
    def strategy(self) -> str:
        """By its name, "" where nobody said."""
        ...

    @property
    def title(self) -> str:
        """What a person would call it."""
        ...


def labels(runs: Sequence[Named]) -> list[str]:
    """A name a run: its strategy, and its title too where several have the same strategy."""
    times = Counter(run.strategy for run in runs)
    return [
        f"{run.strategy}: {run.title}" if run.title and times[run.strategy] > 1 else run.strategy
        for run in runs
    ]


def devices(run: Run) -> list[Rank]:
    """The run's rows but a parameter server's host."""
    return [row for row in run.ranks if row.device != HOST]


def traffic_bytes(rank: Rank) -> int | None:
    """Bytes a device sends and receives in a step, None unless both are known."""
    if rank.sent_bytes_per_step is None or rank.received_bytes_per_step is None:
        return None
    return rank.sent_bytes_per_step + rank.received_bytes_per_step


def peak_bytes(rank: Rank) -> int | None:
    """A device's memory peak."""
    return rank.memory.peak_bytes


def model_state_bytes(rank: Rank) -> int | None:
    """Parameters, gradients and optimizer state a device keeps between steps, if all are known."""
    kept = rank.memory.at_step_end
    if kept.params is None or kept.grads is None or kept.optimizer is None:
        return None
    return kept.params + kept.grads + kept.optimizer


def peaks_of_processes(run: Run) -> bool:
    """Whether peaks are resident sizes: of whole processes, libraries and all, and of no step."""
    return any(rank.memory.source == "rss" for rank in devices(run))


def on_core_share(rank: Rank) -> float | None:
    """Share of a step in which the device's thread ran, None unless its waits are all known."""
    if rank.gil_wait is None or rank.idle is None or rank.runqueue_wait is None:
        return None
    return max(1.0 - rank.gil_wait - rank.idle - rank.runqueue_wait, 0.0)


def exposed_share(rank: Rank) -> float | None:
    """Share of a step in which compute waited for communication."""
    return rank.comm_ms.exposed_share


def others_median(run: Run, value: Callable[[Rank], float | None]) -> float | None:
    """The median over all devices but the first, None unless all are known."""
    known = _all_known(value(row) for row in devices(run)[1:])
    return statistics.median(known) if known else None


def largest(run: Run, value: Callable[[Rank], float | None]) -> float | None:
    """The largest known value over a run's devices."""
    return max((v for row in devices(run) if (v := value(row)) is not None), default=None)


def _all_known(values: Iterable[int | None] | Iterable[float | None]) -> list[float]:
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def _smallest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _overlapped_share(rank: Rank) -> float | None:
    exposed, total = rank.comm_ms.exposed, rank.comm_ms.total
    return None if exposed is None or not total else max(1.0 - exposed / total, 0.0)
