"""Collectives issued by frameworks' own functions rather than by the script.

Ranks report sums (`wire.Issuer`), so this keeps nothing between heartbeats.
"""

from __future__ import annotations

from dpwatch.run.derive.communication import whole_bytes
from dpwatch.run.derive.rank_metrics import START_UP_STEPS
from dpwatch.run.model.snapshot import IssuerStats, Run
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import WINDOW
from dpwatch.wire.messages import Issuer

MOST_ISSUERS = 512
"""Issuers reported: those with the most bytes."""


def issuers(state: RunState) -> list[IssuerStats]:
    """Issuers of all ranks, most bytes first; only the first rank of a group reports its calls."""
    found = [
        (each, _steps(each, rank))
        for rank in state.ranks.values()
        for each in (rank.beat.issuers if rank.beat else ())
    ]
    found.sort(key=lambda each: (-each[0].nbytes, -each[0].calls))
    return [_stats(*each) for each in found[:MOST_ISSUERS]]


def recent(run: Run) -> list[IssuerStats]:
    """Issuers active in recent steps, without those of the start only."""
    since = min(max(START_UP_STEPS, run.steps - WINDOW // 2), run.steps - 1)
    found = [each for each in run.issuers if each.last_step >= since]
    return sorted(found, key=lambda each: (-(each.bytes_per_step or 0), -each.calls))


def _steps(issuer: Issuer, rank: RankState) -> int:
    """Number of steps, including the current one but not what follows the last."""
    return issuer.steps if rank.bye is None else min(issuer.steps, rank.steps_done)


def _stats(issuer: Issuer, steps: int) -> IssuerStats:
    return IssuerStats(
        framework=issuer.framework,
        function=issuer.function,
        purpose=issuer.purpose,
        op=issuer.op,
        group=issuer.group,
        ranks=issuer.ranks,
        dtype=issuer.dtype,
        calls=issuer.calls,
        bytes=issuer.nbytes,
        count_per_step=issuer.calls / steps if steps else None,
        bytes_per_step=whole_bytes(issuer.nbytes / steps) if steps else None,
        first_step=issuer.first_step,
        last_step=issuer.last_step,
    )
