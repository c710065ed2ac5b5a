"""`oom`: the run ended because a device ran out of memory.

Rule: the run failed, and the reason is torch's OutOfMemoryError (it has this name on CUDA and on
virtual devices). It applies from the first step on: what doesn't fit fails early.
"""

from __future__ import annotations

import re

from dpwatch.run.diagnose import oom_risk
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.snapshot import Rank, Run

MARK = "OutOfMemoryError"
_OWN = re.compile(rf"rank \d+: .*{MARK}")


def rule(run: Run) -> Finding | None:
    """Fires on the reason of a failed run."""
    if run.state != "failed" or not _OWN.match(run.reason):
        return None
    row = _device(run)
    category = oom_risk.largest(row.memory) if row else None
    cure = oom_risk.cure(run, row, category) if row else "use a smaller batch"
    told = run.reason.partition(f"{MARK}: ")[2] or run.reason
    return Finding(
        kind="oom",
        severity="critical",
        ranks=[row.rank] if row else [],
        text=f"{told.rstrip('.')}. {cure.capitalize()}.",
        evidence={
            "device": row.device if row else None,
            "step": row.steps if row else run.steps,
            "peak_bytes_before": row.memory.peak_bytes if row else None,
            "capacity_bytes": row.memory.capacity_bytes if row else None,
            "largest": category,
        },
    )


def _device(run: Run) -> Rank | None:
    """The row of the first device named in the reason, else of the rank it names."""
    named = [(run.reason.find(f"{row.device} "), row) for row in run.ranks]
    found = [item for item in named if item[0] >= 0]
    if found:
        return min(found, key=lambda item: item[0])[1]
    return next((r for r in run.ranks if run.reason.startswith(f"rank {r.rank}:")), None)
