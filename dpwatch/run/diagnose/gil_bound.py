"""`gil_bound`: threads of one process wait for its GIL.

Rule: devices driven by threads of one process are blocked on average for at least 5 % of the step
where only the GIL can block them. From 15 % on it is a warning.
"""

from __future__ import annotations

from dpwatch.quantiles import known
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.snapshot import Run

WORTH_SAYING = 0.05
WARNING = 0.15


def rule(run: Run) -> Finding | None:
    """Fires on the mean GIL wait over the devices of processes that drive several."""
    threads: dict[tuple[str, int], list[float | None]] = {}
    for row in run.ranks:
        threads.setdefault((row.host, row.pid), []).append(row.gil_wait)
    crowded = {process: waits for process, waits in threads.items() if len(waits) > 1}
    waits = known(wait for each in crowded.values() for wait in each)
    if not waits or (mean := sum(waits) / len(waits)) < WORTH_SAYING:
        return None
    return Finding(
        kind="gil_bound",
        severity="warning" if mean >= WARNING else "info",
        ranks=sorted({row.rank for row in run.ranks if (row.host, row.pid) in crowded}),
        text=f"The threads that drive the devices spend {mean:.0%} of each step (at most "
        f"{max(waits):.0%}) waiting for the GIL, because they share one Python process. Use one "
        "process per device: DistributedDataParallel, ZeRO or FSDP.",
        evidence={
            "gil_wait_mean": mean,
            "gil_wait_max": max(waits),
            "threads": max(len(waits) for waits in crowded.values()),
        },
    )
