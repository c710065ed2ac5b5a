"""`oom_risk`: a device is close to running out of memory.

Rule: a device's peak is at least 90 % of its capacity (critical from 97 % on). It names the device
with the least room left, what fills it, and what to do. The peak is the highest measured one.
"""

from __future__ import annotations

from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.snapshot import MemoryUse, Rank, Run
from dpwatch.units import size
from dpwatch.wire.messages import CATEGORIES

RISKY = 0.90
CRITICAL = 0.97

_CENTRE = {
    "dp": "device 0 gathers all logits and alone holds summed gradients and optimizer state",
    "ps-gpu0": "device 0 is a worker and the parameter server",
}
_CURES = {
    "params": "shard the model (zero3, fsdp)",
    "grads": "shard gradients (zero2, zero3, fsdp)",
    "optimizer": "shard the optimizer state (zero1, zero2, zero3, fsdp)",
    "activations": "use a smaller batch or sequence, or --activation-checkpointing",
    "gathered": "drop gathered parameters after forward (--reshard-after-forward)",
}
_OTHER_CURE = "use a smaller batch"


def rule(run: Run) -> Finding | None:
    """Fires on the fullest device with a known peak and capacity."""
    full = [(share, row) for row in run.ranks if (share := _share(row.memory)) >= RISKY]
    if not full or run.state == "failed":
        return None
    share, row = max(full, key=lambda item: item[0])
    memory = row.memory
    peak, capacity = memory.peak_bytes or 0, memory.capacity_bytes or 0
    category = largest(memory)
    lone = len(full) == 1 and len(run.ranks) > 1
    return Finding(
        kind="oom_risk",
        severity="critical" if share >= CRITICAL else "warning",
        ranks=sorted({other.rank for _, other in full}),
        text=f"{row.device} peaks at {size(peak)}, {share:.0%} of its {size(capacity)}"
        f"{_most(memory, category)}: it is close to running out of memory. "
        f"{cure(run, row, category).capitalize()}.{_why(run, row) if lone else ''}",
        evidence={
            "device": row.device,
            "devices": [other.device for _, other in full],
            "peak_bytes": peak,
            "capacity_bytes": capacity,
            "share": share,
            "largest": category,
            "largest_bytes": getattr(memory, category) if category else None,
        },
    )


def largest(memory: MemoryUse) -> str | None:
    """The largest category at the peak, None if none is known."""
    sizes = {name: size for name in CATEGORIES if (size := getattr(memory, name)) is not None}
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def cure(run: Run, row: Rank, category: str | None) -> str:
    """What to do about a device that is full of this category."""
    against = _OTHER_CURE if category is None else _CURES.get(category, _OTHER_CURE)
    if run.strategy in _CENTRE and row is run.ranks[0]:
        return f"use a strategy without a master (ddp, zero, fsdp), or {against}"
    return against


def _share(memory: MemoryUse) -> float:
    if memory.peak_bytes is None or not memory.capacity_bytes:
        return 0.0
    return memory.peak_bytes / memory.capacity_bytes


def _most(memory: MemoryUse, category: str | None) -> str:
    if category is None:
        return ""
    return f", most of it {category} ({size(getattr(memory, category))})"


def _why(run: Run, row: Rank) -> str:
    if row is run.ranks[0] and run.strategy in _CENTRE:
        return f" The other devices have room: {_CENTRE[run.strategy]}."
    return " The other devices have room."
