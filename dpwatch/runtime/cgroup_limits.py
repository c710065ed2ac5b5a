"""The cores and memory this process may use of its host, as limited by control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int | None:
    """Number of cores this process may use: its affinity, or its cgroup quota if that is less."""
    try:
        allowed: int | None = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        allowed = os.cpu_count()
    quota = cpu_quota()
    if allowed is None or quota is None:
        return allowed
    return max(1, min(allowed, int(quota)))


def cpu_quota(root: Path = CGROUPS) -> float | None:
    """Cores by the tightest cpu.max (cgroup v2) from this process's group up to the root."""
    return min(filter(None, map(_cpu_max, _groups(root))), default=None)


def memory_limit(root: Path = CGROUPS) -> int | None:
    """Bytes by the tightest memory.max (cgroup v2), likewise; None without a limit."""
    return min(filter(None, map(_memory_max, _groups(root))), default=None)


def _cpu_max(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit here
        return None


def _memory_max(group: Path) -> int | None:
    try:
        return int((group / "memory.max").read_text())
    except (OSError, ValueError):
        return None


def _groups(root: Path) -> Iterator[Path]:
    """The directories of this process's control group and of its ancestors."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    inside = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = root / inside.lstrip("/")
    for folder in (group, *group.parents):
        if root not in (folder, *folder.parents):
            return
        yield folder
