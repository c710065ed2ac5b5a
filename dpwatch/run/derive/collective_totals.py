"""Collectives of a run per rank, summed over the groups that call them."""

from __future__ import annotations

from dataclasses import dataclass

from dpwatch.plan.traffic import wire_bytes
from dpwatch.run.model.snapshot import CollectiveStats, Run


@dataclass(frozen=True, kw_only=True, slots=True)
class PerRank:
    """A collective per rank, over all groups of one size that call it.

    Attributes:
        op: c10d's name.
        ranks: Ranks per group.
        groups: Number of groups that call it; each rank is in one of them.
        name: Name of the first group.
        count: Calls per step.
        hands_in: Payload bytes per rank and step, averaged over all ranks.
        sends: Bytes a rank sends per step for that payload, by the ring algorithm.
        p50_ms: Median latency of the slowest group.
    """

    op: str
    ranks: int
    groups: int
    name: str
    count: float
    hands_in: float
    sends: float
    p50_ms: float | None


def per_rank(run: Run) -> list[PerRank]:
    """A run's collectives by op and group size."""
    processes = len({rank.rank for rank in run.ranks}) or 1
    by_kind: dict[tuple[str, int], list[CollectiveStats]] = {}
    for each in run.collectives:
        by_kind.setdefault((each.op, each.ranks), []).append(each)
    result = []
    for (op, ranks), some in by_kind.items():
        # A rank is in one of several groups; a single group is shown as its members see it.
        weight = ranks / max(processes, ranks) if len(some) > 1 else 1.0
        latencies = [each.latency_ms.p50 for each in some if each.latency_ms.p50 is not None]
        result.append(
            PerRank(
                op=op,
                ranks=ranks,
                groups=len(some),
                name=some[0].group,
                count=sum(each.count_per_step or 0 for each in some) * weight,
                hands_in=sum(each.bytes_per_step or 0 for each in some) * weight,
                sends=sum(_sent(op, each.bytes_per_step or 0, ranks) for each in some) * weight,
                p50_ms=max(latencies, default=None),
            )
        )
    return result


def _sent(op: str, nbytes: int, ranks: int) -> int:
    return 0 if op == "recv" else wire_bytes(op, nbytes, ranks)
