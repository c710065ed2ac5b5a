"""`overlap_poor`: communication that could overlap with backward does not.

Rule: in a strategy that overlaps (DDP, ZeRO, FSDP), at least 60 % of the communication time is
exposed, this costs at least 10 % of the step, neither late ranks nor a lack of cores explain it,
and backward alone is long enough to hide half of it. It is a hint, since how much can be hidden
depends on the model.
"""

from __future__ import annotations

from dpwatch.quantiles import median
from dpwatch.run.diagnose.comm_bound import net_shares
from dpwatch.run.diagnose.finding import Finding, shared_by_most
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.run_state import RunState

EXPOSED = 0.6
WORTH_SAYING = 0.10
HIDEABLE = 0.5

_CURES = {
    "ddp": "Let DDP start communicating earlier: a smaller bucket_cap_mb, "
    "gradient_as_bucket_view, and find_unused_parameters only if some are unused",
    "fsdp": "Let FSDP prefetch: smaller wrapped blocks, forward prefetch, backward_prefetch "
    "BACKWARD_PRE",
}
_CURES |= dict.fromkeys(("zero1", "zero2"), _CURES["ddp"])
_CURES |= dict.fromkeys(("zero3", "fsdp1", "hsdp"), _CURES["fsdp"])


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on the exposed share of communication time."""
    cure = _CURES.get(run.strategy)
    exposed = median(row.comm_ms.exposed for row in run.ranks)
    total = median(row.comm_ms.total for row in run.ranks)
    backward = median(row.phases_ms.backward for row in run.ranks)
    if cure is None or not exposed or not total or not backward:
        return None
    compute = backward - min(exposed, backward)
    hideable = compute >= HIDEABLE * total
    if exposed < EXPOSED * total or not hideable:
        return None
    cost = shared_by_most(net_shares(run, state).values())
    if cost is None or cost < WORTH_SAYING:
        return None
    return Finding(
        kind="overlap_poor",
        severity="info",
        ranks=sorted({row.rank for row in run.ranks}),
        text=f"{min(1.0, exposed / total):.0%} of the communication time is exposed, "
        f"{cost:.0%} of each step, although it could overlap with {compute:.0f} ms of backward. "
        f"{cure}.",
        evidence={
            "cost": cost,
            "exposed_ms": exposed,
            "total_ms": total,
            "backward_ms": backward,
            "exposed_share": min(1.0, exposed / total),
        },
    )
