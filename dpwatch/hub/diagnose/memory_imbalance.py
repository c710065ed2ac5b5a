"""`memory_imbalance`: one rank holds much more memory than the others, and it is not device 0.

Rule: the fullest device peaks at 1.25 × the median of the others or more, and by 1 MiB at least.
Peaks of whole processes (`rss`) are not compared: a rank may have read the data set once.
Device 0 is `master_imbalance`'s; devices that hold different parts of a model by design
(`ddp-mp`) and hosts that serve parameters are not compared.
"""

from __future__ import annotations

from dpwatch.hub.diagnose.finding import Finding, mebibytes
from dpwatch.hub.series import median
from dpwatch.hub.snapshot import Rank, Run
from dpwatch.wire.messages import CATEGORIES

RATIO = 1.25
LEAST_BYTES = 1 << 20
WARNING_SHARE = 0.8

_DIFFERENT_PARTS = frozenset({"ddp-mp"})


def rule(run: Run) -> Finding | None:
    """Fires on peaks, all of which have to be known."""
    rows = [row for row in run.ranks if row.device_kind != "host"]
    peaks = [row.memory.peak_bytes for row in rows]
    if len(rows) < 2 or run.strategy in _DIFFERENT_PARTS or None in peaks:
        return None
    if any(row.memory.source == "rss" for row in rows):  # whole processes, whatever they did before
        return None
    top = max(range(len(rows)), key=lambda i: peaks[i] or 0)
    others = median(peaks[:top] + peaks[top + 1 :]) or 0.0
    fullest, peak = rows[top], peaks[top] or 0
    if top == 0 or peak < RATIO * others or peak - others < LEAST_BYTES:
        return None
    where, more = _difference(fullest, [row for row in rows if row is not fullest])
    capacity = fullest.memory.capacity_bytes
    tight = capacity is not None and peak >= WARNING_SHARE * capacity
    mostly = f", {mebibytes(more)} of it {where}" if where else ""
    return Finding(
        kind="memory_imbalance",
        severity="warning" if tight else "info",
        ranks=[fullest.rank],
        text=f"Rank {fullest.rank} ({fullest.device}) peaks at {mebibytes(peak)}, "
        f"{peak / others:.1f}× what the others do ({mebibytes(others)}){mostly}: it runs out of "
        "memory first, and limits the batch of all. Give it the same work (longest sequences, an "
        "uneven shard), or free what only it keeps.",
        evidence={
            "device": fullest.device,
            "peak_bytes": peak,
            "others_median_peak_bytes": int(others),
            "peak_over_median": peak / others if others else None,
            "category": where,
            "category_more_bytes": more if where else None,
        },
    )


def _difference(row: Rank, others: list[Rank]) -> tuple[str | None, int]:
    """The category in which it holds most more than the others' median."""
    more: dict[str, int] = {}
    for name in CATEGORIES:
        own = getattr(row.memory, name)
        typical = median(getattr(other.memory, name) for other in others)
        if own is not None and typical is not None:
            more[name] = int(own - typical)
    if not more or max(more.values()) <= 0:
        return None, 0
    where = max(more, key=lambda name: more[name])
    return where, more[where]
