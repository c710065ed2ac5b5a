"""`cpu_oversubscribed`: the host has too few cores, so runnable threads wait for one.

Rule: the training threads spend on average at least 10 % of wall time in the run queue; from 25 %
on it is a warning. It says nothing about the strategy.
"""

from __future__ import annotations

from dpwatch.quantiles import known
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.snapshot import Run

WORTH_SAYING = 0.10
WARNING = 0.25

_TAKES_TURNS = frozenset({"ddp-mp"})
"""Strategies in which one thread drives all devices of its process in turn."""


def rule(run: Run) -> Finding | None:
    """Fires on the mean run-queue wait over all training threads."""
    by_thread = _by_thread(run)
    waits = known(by_thread)
    if not waits or (mean := sum(waits) / len(waits)) < WORTH_SAYING:
        return None
    threads = len(by_thread)
    who = "1 training thread spends" if threads == 1 else f"{threads} training threads spend"
    if run.cores and threads <= run.cores:
        why = f"the host's {run.cores} cores are busy with other processes"
        cure = "Stop those processes, or use another host"
    else:
        why = f"the host has {run.cores or 'too few'} cores"
        cure = "Use fewer ranks, a host with more cores, or fewer other processes"
    return Finding(
        kind="cpu_oversubscribed",
        severity="warning" if mean >= WARNING else "info",
        ranks=sorted({row.rank for row in run.ranks}),
        text=f"{who} {mean:.0%} of the time ready to run but without a core, because {why}: "
        f"step times measure the host, not the strategy. {cure}.",
        evidence={
            "runqueue_wait_mean": mean,
            "runqueue_wait_max": max(waits),
            "threads": threads,
            "cores": run.cores,
        },
    )


def _by_thread(run: Run) -> list[float | None]:
    """Each training thread's share of time in the run queue, None if unknown."""
    if run.strategy not in _TAKES_TURNS:
        return [row.runqueue_wait for row in run.ranks]
    waits: dict[tuple[str, int], float | None] = {}
    for row in run.ranks:
        thread, wait = (row.host, row.pid), row.runqueue_wait
        before = waits.get(thread, 0.0)
        waits[thread] = None if before is None or wait is None else before + wait
    return list(waits.values())
