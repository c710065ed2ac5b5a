"""`comm_bound`: compute waits for communication, more than late ranks explain.

Rule: for more than half of the ranks, exposed communication less what they waited in the same step
for others to come to a call takes at least 25 % of the step; from 40 % on it is a warning. Ranks
that wait for a late one are a `straggler`'s victims. Where ranks share too few cores, their
collectives wait for a core as all else does, and `cpu_oversubscribed` says so.
"""

from __future__ import annotations

from dpwatch.hub.diagnose import cpu_oversubscribed
from dpwatch.hub.diagnose.finding import SETTLED_STEPS, Finding, mebibytes, shared_by_most, some_of
from dpwatch.hub.parts import RankState
from dpwatch.hub.series import NONE, WAIT_NS, median
from dpwatch.hub.snapshot import Run
from dpwatch.hub.state import RunState

WORTH_SAYING = 0.25
WARNING = 0.40
STEPS = 32


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on exposed communication's share of the step."""
    shares = net_shares(run, state)
    share = shared_by_most(shares.values())
    if share is None or share < WORTH_SAYING or not run.collectives:
        return None
    heaviest = run.collectives[0]
    moved = sum(each.bytes_per_step or 0 for each in run.collectives)
    return Finding(
        kind="comm_bound",
        severity="warning" if share >= WARNING else "info",
        ranks=sorted(state.ranks),
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


def net_shares(run: Run, state: RunState) -> dict[int, float]:
    """By rank, exposed communication that late ranks don't explain, as a share of the step.

    Empty where a lack of cores would be taken for it, and before steps have settled.
    """
    crowded = run.devices != "cuda" and run.cores is not None and len(run.ranks) > run.cores
    if run.steps < SETTLED_STEPS or crowded or cpu_oversubscribed.rule(run) is not None:
        return {}
    shares = {r: _net_share(rank) for r, rank in some_of(list(state.ranks.items()))}
    known = {r: share for r, share in shares.items() if share is not None}
    return known if 2 * len(known) > len(shares) else {}


def _net_share(rank: RankState) -> float | None:
    """The median over the steps in which exposed time was measured, None of none."""
    lane = rank.lanes.get(0)
    if lane is None:
        return None
    columns = (lane.recent.field(name) for name in ("step", "exposed_ns"))
    rows = zip(*columns, lane.recent.took_ns(), strict=True)
    measured = [row for row in rows if row[1] != NONE and row[0]][-STEPS:]
    mine = [by for each in rank.lanes.values() for by in each.calls.values()]
    waited = [by.column(WAIT_NS, [step for step, _, _ in measured]) for by in mine]
    waits_ns = list(map(sum, zip(*waited, strict=True))) or [0] * STEPS
    return median(
        max(0, exposed_ns - wait_ns) / max(1, took_ns)
        for (_, exposed_ns, took_ns), wait_ns in zip(measured, waits_ns, strict=False)
    )
