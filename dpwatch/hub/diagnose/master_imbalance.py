"""`master_imbalance`: device 0 holds or carries much more than the others.

Rule: device 0's peak is at least 1.25 × the median of the other devices, or its traffic at least
1.5 ×. nn.DataParallel and a parameter server on device 0 do this by design; at N = 2 the traffic
is even (each copy has two ends) and memory alone tells. A model split over devices (`ddp-mp`) has
no master: they hold different parts by design, device 0 the same as the first of every rank.
"""

from __future__ import annotations

from typing import Any

from dpwatch.hub.diagnose.finding import Finding, mebibytes
from dpwatch.hub.series import median
from dpwatch.hub.snapshot import Run

PEAK_RATIO = 1.25
TRAFFIC_RATIO = 1.5
NEARLY_FULL = 0.9

_WHY = {
    "dp": "DataParallel gathers outputs and gradients on device 0 and updates there",
    "ps-gpu0": "the parameter server lives on device 0",
}

_NO_MASTER = frozenset({"ddp-mp"})


def rule(run: Run) -> Finding | None:
    """Fires on the ratios that `Run.balance` holds."""
    if run.strategy in _NO_MASTER:
        return None
    peak_ratio = run.balance.peak_device0_over_median
    traffic_ratio = run.balance.traffic_device0_over_median
    heavy = peak_ratio is not None and peak_ratio >= PEAK_RATIO
    busy = traffic_ratio is not None and traffic_ratio >= TRAFFIC_RATIO
    if not heavy and not busy:
        return None
    devices = [row for row in run.ranks if row.device_kind != "host"]
    first = devices[0]
    evidence: dict[str, Any] = {"device": first.device}
    said = []
    if peak_ratio is not None and first.memory.peak_bytes is not None:
        others = median(row.memory.peak_bytes for row in devices[1:])
        evidence |= {
            "device0_peak_bytes": first.memory.peak_bytes,
            "others_median_peak_bytes": int(others or 0),
            "peak_device0_over_median": peak_ratio,
        }
        said.append(
            f"peaks at {mebibytes(first.memory.peak_bytes)} where the others reach "
            f"{mebibytes(others or 0)} ({peak_ratio:.1f}×)"
        )
    if traffic_ratio is not None:
        evidence["traffic_device0_over_median"] = traffic_ratio
    if busy:
        said.append(f"carries {traffic_ratio:.1f}× their traffic")
    capacity = first.memory.capacity_bytes
    full = capacity and first.memory.peak_bytes and first.memory.peak_bytes > NEARLY_FULL * capacity
    why = _WHY.get(run.strategy, "one device does work for all")
    return Finding(
        kind="master_imbalance",
        severity="critical" if full else "warning",
        ranks=[first.rank],
        text=f"{first.device} {' and '.join(said)}: {why}. It runs out of memory first and the "
        "others wait for it. Use DistributedDataParallel (one process a device), or shard with "
        "ZeRO or FSDP.",
        evidence=evidence,
    )
