"""`memory_imbalance`: one rank holds much more memory than the others, and it is not device 0.

Rule: the fullest device holds at least 1.25 × the median of the others and 1 MiB more, at the peak
or between steps. For whole processes (`rss`) memory allocated by malloc is compared, between steps,
and at least 64 MiB. Device 0 is covered by `master_imbalance`; devices that hold different parts of
a model by design (`ddp-mp`) and hosts that serve parameters are not compared.
"""

from __future__ import annotations

from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.diagnose.uneven import WARNING_SHARE, fullest, uneven, why
from dpwatch.run.model.snapshot import Run
from dpwatch.units import size

_DIFFERENT_PARTS = frozenset({"ddp-mp"})


def rule(run: Run) -> Finding | None:
    """Fires on what devices hold, if it is known of all."""
    rows = [row for row in run.ranks if row.device_kind != "host"]
    if run.strategy in _DIFFERENT_PARTS:
        return None
    each = (uneven(rows, place) for place in fullest(rows) if place)
    found = next((one for one in each if one is not None), None)
    if found is None:
        return None
    row = found.row
    mostly = f", {size(found.more)} of it {found.category}" if found.category else ""
    verb = "peaks at" if found.at_peak else "holds"
    times = f"{found.own / found.others:.1f}× " if found.others else ""
    return Finding(
        kind="memory_imbalance",
        severity="warning" if found.share >= WARNING_SHARE else "info",
        ranks=[row.rank],
        text=f"Rank {row.rank} ({row.device}) {verb} {size(found.own)}, {times}what the "
        f"others do ({size(found.others)}){mostly}: it runs out of memory first and limits "
        f"the batch size of all. {why(found)}",
        evidence={
            "device": row.device,
            "peak_bytes": row.memory.peak_bytes,
            "held_bytes": None if found.at_peak else found.own,
            "others_median_peak_bytes": found.others if found.at_peak else None,
            "others_median_held_bytes": None if found.at_peak else found.others,
            "peak_over_median": found.own / found.others if found.others else None,
            "category": found.category or None,
            "category_more_bytes": found.more if found.category else None,
        },
    )
