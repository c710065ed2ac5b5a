"""`comm_bound`: compute waits for communication, more than late ranks explain.

Rule: for at least half of the ranks, exposed communication less what they waited for others to
come to the same call takes at least 25 % of the step; from 40 % on it is a warning. Ranks that wait
for a late one are a `straggler`'s victims; where there are too few cores, collectives wait for one
as all else does, and `cpu_oversubscribed` says so.
"""

from __future__ import annotations

from dpwatch.hub.diagnose import cpu_oversubscribed
from dpwatch.hub.diagnose.finding import SETTLED_STEPS, Finding, mebibytes, shared_by_half
from dpwatch.hub.series import median
from dpwatch.hub.snapshot import Rank, Run

WORTH_SAYING = 0.25
WARNING = 0.40


def rule(run: Run) -> Finding | None:
    """Fires on exposed communication's share of the median step."""
    shares = {row.rank: share for row in run.ranks if (share := net_share(row)) is not None}
    share = shared_by_half(shares.values())
    if run.steps < SETTLED_STEPS or share is None or share < WORTH_SAYING or not run.collectives:
        return None
    if cpu_oversubscribed.rule(run) is not None:
        return None
    heaviest = run.collectives[0]
    moved = sum(each.bytes_per_step for each in run.collectives)
    return Finding(
        kind="comm_bound",
        severity="warning" if share >= WARNING else "info",
        ranks=sorted(shares),
        text=f"Compute waits for communication {share:.0%} of each step; a rank hands in "
        f"{mebibytes(moved)} a step, most of it to {heaviest.op} (group {heaviest.group}). Send "
        "less: accumulate gradients over more batches (with no_sync), a larger batch, bf16 "
        "gradients, or shard within a host only (HSDP).",
        evidence={
            "cost": share,
            "cost_max": max(shares.values()),
            "bytes_per_step": moved,
            "op": heaviest.op,
            "group": heaviest.group,
            "exposed_ms": median(row.comm_ms.exposed for row in run.ranks),
            "wait_ms": median(row.comm_ms.wait for row in run.ranks),
        },
    )


def net_share(row: Rank) -> float | None:
    """Exposed communication that late ranks don't explain, as a share of the step."""
    if row.comm_ms.exposed is None or not row.step_ms.p50:
        return None
    return max(0.0, row.comm_ms.exposed - (row.comm_ms.wait or 0.0)) / row.step_ms.p50
