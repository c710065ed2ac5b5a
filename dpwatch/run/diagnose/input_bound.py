"""`input_bound`: the ranks wait for data.

Rule: for more than half of the ranks, waiting for the next batch takes at least 10 % of the step,
minus their wait for a core, since their loaders wait for one too; from 25 % on it is a warning.
One rank that waits alone is a `straggler`.
"""

from __future__ import annotations

from dpwatch.quantiles import known, median
from dpwatch.run.diagnose.finding import SETTLED_STEPS, Finding, shared_by_most
from dpwatch.run.model.snapshot import Run

WORTH_SAYING = 0.10
WARNING = 0.25
LEAST_MS = 0.5
"""Shorter waits are overhead of the loader."""


def rule(run: Run) -> Finding | None:
    """Fires on the data phase's share of the median step."""
    shares = {
        row.rank: row.phases_ms.data / row.step_ms.p50
        for row in run.ranks
        if row.phases_ms.data is not None and row.step_ms.p50
    }
    share = shared_by_most(shares.values())
    data_ms = median(row.phases_ms.data for row in run.ranks) or 0.0
    waits = known(row.runqueue_wait for row in run.ranks)
    queued = sum(waits) / len(waits) if waits else 0.0
    if run.steps < SETTLED_STEPS or share is None or data_ms < LEAST_MS:
        return None
    net = share - queued
    if net < WORTH_SAYING:
        return None
    return Finding(
        kind="input_bound",
        severity="warning" if net >= WARNING else "info",
        ranks=sorted(rank for rank, own in shares.items() if own >= WORTH_SAYING),
        text=f"Waiting for data takes {share:.0%} of each step ({data_ms:.1f} ms). Give the data "
        "loader more workers (num_workers, prefetch_factor, persistent_workers), cache decoded "
        "samples, or move the data to a faster disk.",
        evidence={
            "data_ms": data_ms,
            "cost": share,
            "cost_max": max(known(shares.values())),
            "step_ms": median(row.step_ms.p50 for row in run.ranks),
        },
    )
