"""Figures by which runs, and so strategies, are compared.

The compare screen, the Markdown table and the text output all read these, so they can't disagree.
An unknown figure is None. A parameter server's host is not a device: no figure of the devices
includes it.
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
    """Figures of one run. Memory and traffic are in bytes, `_ms` in milliseconds, shares 0..1.

    Attributes:
        first: Row of device 0, None before a device is known.
        fullest: Row with the highest peak among the other devices.
        host: Row of a parameter server in host memory.
        peak0: Memory peak of device 0.
        peak_others_max: Highest peak of the other devices, None unless all are known.
        peak_others_min: Lowest peak of the other devices, None unless all are known.
        peak_others_median: Median peak of the other devices, None unless all are known.
        traffic0: Bytes sent and received by device 0 per step.
        traffic_others: The same of the other devices, their median; None unless all are known.
        step_ms: Median step time of the slowest device.
        samples_per_s: Throughput of the whole run.
        comm_ms: Highest communication time of a device per step, hidden or not.
        exposed_ms: Highest time that a device's compute waits for communication per step.
        exposed_share: The same as a share of the step, the highest of all devices.
        overlapped_share: Share of communication hidden by compute, the lowest of all devices.
        gil_wait, idle, runqueue_wait: Shares of the step, the highest of all devices.
        largest_batch: Largest batch that fits, if it was searched for.
        loss: The last loss.
        cores_short: Whether times reflect the host's lack of cores rather than the strategy.
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
        run: A run, in any state.
        largest_batch: Result of the batch search, if there was one.
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
    """Something with a strategy and a title: a run or its configuration."""

    @property
    def strategy(self) -> str:
        """Name of the strategy, "" if unknown."""
        ...

    @property
    def title(self) -> str:
        """Title for people."""
        ...


def labels(runs: Sequence[Named]) -> list[str]:
    """A name for each run: its strategy, plus its title if several have the same strategy."""
    times = Counter(run.strategy for run in runs)
    return [
        f"{run.strategy}: {run.title}" if run.title and times[run.strategy] > 1 else run.strategy
        for run in runs
    ]


def devices(run: Run) -> list[Rank]:
    """The run's rows, without a parameter server's host."""
    return [row for row in run.ranks if row.device != HOST]


def traffic_bytes(rank: Rank) -> int | None:
    """Bytes that a device sends and receives per step, None unless both are known."""
    if rank.sent_bytes_per_step is None or rank.received_bytes_per_step is None:
        return None
    return rank.sent_bytes_per_step + rank.received_bytes_per_step


def peak_bytes(rank: Rank) -> int | None:
    """A device's memory peak."""
    return rank.memory.peak_bytes


def model_state_bytes(rank: Rank) -> int | None:
    """Bytes of parameters, gradients and optimizer state that a device keeps between steps.

    None unless all three are known.
    """
    kept = rank.memory.at_step_end
    if kept.params is None or kept.grads is None or kept.optimizer is None:
        return None
    return kept.params + kept.grads + kept.optimizer


def peaks_of_processes(run: Run) -> bool:
    """Whether peaks are resident sizes: of whole processes including libraries, not of steps."""
    return any(rank.memory.source == "rss" for rank in devices(run))


def on_core_share(rank: Rank) -> float | None:
    """Share of the step in which the device's thread ran, None unless all its waits are known."""
    if rank.gil_wait is None or rank.idle is None or rank.runqueue_wait is None:
        return None
    return max(1.0 - rank.gil_wait - rank.idle - rank.runqueue_wait, 0.0)


def exposed_share(rank: Rank) -> float | None:
    """Share of the step in which compute waited for communication."""
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
