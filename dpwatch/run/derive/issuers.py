"""What frameworks' own functions issue, beside what the script asks for: for people.

Ranks tell sums (`wire.Issuer`), so nothing is kept here from one heartbeat to the next.
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
"""Kinds that are told of: the heaviest."""


def issuers(state: RunState) -> list[IssuerStats]:
    """Those of all ranks, the heaviest first; each group's are told by its first rank alone."""
    told = [
        (each, _steps(each, rank))
        for rank in state.ranks.values()
        for each in (rank.beat.issuers if rank.beat else ())
    ]
    told.sort(key=lambda each: (-each[0].nbytes, -each[0].calls))
    return [_stats(*each) for each in told[:MOST_ISSUERS]]


def recent(run: Run) -> list[IssuerStats]:
    """Those that the last steps have called; not what only the start has."""
    since = min(max(START_UP_STEPS, run.steps - WINDOW // 2), run.steps - 1)
    found = [each for each in run.issuers if each.last_step >= since]
    return sorted(found, key=lambda each: (-(each.bytes_per_step or 0), -each.calls))


def _steps(told: Issuer, rank: RankState) -> int:
    """Steps so far; the one under way is one too, but not what comes after the last."""
    return told.steps if rank.bye is None else min(told.steps, rank.steps_done)


def _stats(told: Issuer, steps: int) -> IssuerStats:
    return IssuerStats(
        framework=told.framework,
        function=told.function,
        purpose=told.purpose,
        op=told.op,
        group=told.group,
        ranks=told.ranks,
        dtype=told.dtype,
        calls=told.calls,
        bytes=told.nbytes,
        count_per_step=told.calls / steps if steps else None,
        bytes_per_step=whole_bytes(told.nbytes / steps) if steps else None,
        first_step=told.first_step,
        last_step=told.last_step,
    )
