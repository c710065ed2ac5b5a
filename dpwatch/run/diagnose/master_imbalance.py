"""`master_imbalance`: device 0 holds or transfers much more than the others.

Rule: device 0's peak is at least 1.25 × the median of the other devices, or its traffic at least
1.5 ×. nn.DataParallel and a parameter server on device 0 do this by design; at N = 2 the traffic
is even (each copy has two ends), so only memory tells. A model split over devices (`ddp-mp`) has
no master: its devices hold different parts by design.

In any other strategy no device is a master, and the text says that this rank keeps more, or that
sharding gives it more; memory is compared as in `memory_imbalance`, traffic over the same steps
only.
"""

from __future__ import annotations

from typing import Any

from dpwatch.quantiles import median
from dpwatch.run.derive.rank_metrics import IN_STEP
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.diagnose.uneven import CRITICAL_SHARE, RATIO, SHARED_OUT, Uneven, uneven, why
from dpwatch.run.model.snapshot import Rank, Run
from dpwatch.units import size

TRAFFIC_RATIO = 1.5

_MASTERS = {
    "dp": "DataParallel gathers outputs and gradients on device 0 and runs the optimizer there",
    "ps-gpu0": "the parameter server is on device 0",
}

_NO_MASTER = frozenset({"ddp-mp"})


def rule(run: Run) -> Finding | None:
    """Fires on the ratios in `Run.balance`, and on memory held between steps."""
    devices = [row for row in run.ranks if row.device_kind != "host"]
    if run.strategy in _NO_MASTER or len(devices) < 2:
        return None
    traffic_ratio = run.balance.traffic_device0_over_median
    busy = traffic_ratio is not None and traffic_ratio >= TRAFFIC_RATIO
    if run.strategy in _MASTERS or len({row.pid for row in devices}) == 1:
        return _of_a_master(run, devices, busy=busy)
    found = uneven(devices, 0)
    busy = busy and _in_step(devices)
    if found is None and not busy:
        return None
    return _of_a_rank(run, devices, found, busy=busy)


def _of_a_master(run: Run, devices: list[Rank], *, busy: bool) -> Finding | None:
    peak_ratio = run.balance.peak_device0_over_median
    traffic_ratio = run.balance.traffic_device0_over_median
    heavy = peak_ratio is not None and peak_ratio >= RATIO
    if not heavy and not busy:
        return None
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
            f"peaks at {size(first.memory.peak_bytes)} where the others reach "
            f"{size(others or 0)} ({peak_ratio:.1f}×)"
        )
    if traffic_ratio is not None:
        evidence["traffic_device0_over_median"] = traffic_ratio
    if busy:
        said.append(f"carries {traffic_ratio:.1f}× their traffic")
    why_so = _MASTERS.get(run.strategy, "one device does work for all of them")
    return Finding(
        kind="master_imbalance",
        severity="critical" if _is_full(first) else "warning",
        ranks=[first.rank],
        text=f"{first.device} {' and '.join(said)}: {why_so}. It runs out of memory first, and "
        "the others wait for it. Use DistributedDataParallel (one process per device), or shard "
        "with ZeRO or FSDP.",
        evidence=evidence,
    )


def _of_a_rank(run: Run, devices: list[Rank], found: Uneven | None, *, busy: bool) -> Finding:
    """Rank 0 of a strategy without a master."""
    first = devices[0]
    traffic_ratio = run.balance.traffic_device0_over_median
    evidence: dict[str, Any] = {
        "device": first.device,
        "device0_peak_bytes": first.memory.peak_bytes,
        "traffic_device0_over_median": traffic_ratio,
    }
    said, advice = [], []
    if found is not None:
        verb = "peaks at" if found.at_peak else "holds"
        mostly = f", {size(found.more)} of it {found.category}" if found.category else ""
        said.append(
            f"{verb} {size(found.own)}, {size(found.own - found.others)} more than the "
            f"others ({size(found.others)}){mostly}"
        )
        advice.append(why(found))
        evidence |= {
            "device0_held_bytes": None if found.at_peak else found.own,
            "others_median_bytes": found.others,
            "category": found.category or None,
            "category_more_bytes": found.more if found.category else None,
        }
    if busy:
        said.append(f"carries {traffic_ratio:.1f}× the others' traffic")
        advice.append("It takes part in more exchanges: more groups, or gathers to rank 0 only.")
    full = found is not None and found.share >= CRITICAL_SHARE
    by_design = found is not None and found.category in SHARED_OUT
    in_host_memory = first.memory.source == "rss"
    calm = "info" if (by_design or in_host_memory) and not busy else "warning"
    return Finding(
        kind="master_imbalance",
        severity="critical" if full else calm,
        ranks=[first.rank],
        text=f"Rank {first.rank} ({first.device}) {' and '.join(said)}. {' '.join(advice)}",
        evidence=evidence,
    )


def _in_step(devices: list[Rank]) -> bool:
    """Whether their traffic is of the same steps; else models or strategies may differ."""
    steps = [row.steps for row in devices]
    return max(steps) - min(steps) < IN_STEP


def _is_full(row: Rank) -> bool:
    memory = row.memory
    peak, capacity = memory.peak_bytes, memory.capacity_bytes
    return bool(capacity and peak and peak >= CRITICAL_SHARE * capacity)
