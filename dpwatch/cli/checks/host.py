"""This host: cores, memory, kernel statistics, GPUs, an ssh client."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from dpwatch.cli.checks.check import NOTE, OK, TROUBLE, Check
from dpwatch.cli.checks.child import ask
from dpwatch.units import size

NVML_S = 15.0
"""How long the driver may take; with a GPU that fell off the bus it never answers."""

DRIVER = Path("/proc/driver/nvidia/version")
SCHEDSTAT = Path("/proc/thread-self/schedstat")

_NVML = """\
import json, pynvml
pynvml.nvmlInit()
driver = pynvml.nvmlSystemGetDriverVersion()
print(json.dumps({
    "gpus": pynvml.nvmlDeviceGetCount(),
    "driver": driver.decode() if isinstance(driver, bytes) else driver,
}))
"""


def checks() -> Iterator[Check]:
    """All but the GPUs, which the check of torch needs first."""
    yield cores()
    yield memory()
    yield schedstat()
    yield pidfd()
    yield ssh()


def nvml() -> Check:
    """Whether NVIDIA's driver answers. In a child process, because a broken driver hangs."""
    told, why = ask([sys.executable, "-c", _NVML], timeout_s=NVML_S)
    gpus = told.get("gpus")
    if gpus is not None:
        text = f"driver {told.get('driver')}, {gpus} GPUs"
        return Check("NVML", OK, text, value=gpus)
    if DRIVER.exists():
        text = f"NVIDIA's driver is loaded but does not answer: {why}"
        return Check("NVML", TROUBLE, text, "check nvidia-smi; a reboot may be needed")
    text = f"no NVIDIA driver here ({why}): no GPU figures; the demo uses virtual devices"
    return Check("NVML", NOTE, text)


def cores() -> Check:
    """Cores this process may use."""
    from dpwatch.runtime import cgroup_limits

    allowed, quota = cgroup_limits.cores(), cgroup_limits.cpu_quota()
    if allowed is None:
        return Check("cores", NOTE, "the system does not report how many there are")
    of_host = os.cpu_count() or allowed
    text = f"{allowed} of this host's {of_host}" if allowed < of_host else f"{allowed}"
    if quota is not None:
        text += f" (the control group allows {quota:g})"
    if allowed < 2:
        text += ": ranks, hub and viewer will take turns"
        return Check("cores", NOTE, text, "expect cpu_oversubscribed; trust bytes, not times", 1)
    return Check("cores", OK, text, value=allowed)


def memory() -> Check:
    """Memory this process may use."""
    from dpwatch.runtime import cgroup_limits

    try:
        total: int | None = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        total = None
    limit = cgroup_limits.memory_limit()
    if limit is not None and (total is None or limit < total):
        text = f"{size(limit)} by the control group"
        text += "" if total is None else f", of this host's {size(total)}"
        return Check("memory", OK, text, value=limit)
    if total is None:
        return Check("memory", NOTE, "the system does not report how much there is")
    return Check("memory", OK, f"{size(total)}, no limit by a control group", value=total)


def schedstat(path: Path = SCHEDSTAT) -> Check:
    """Whether the kernel reports how long a thread waited for a core."""
    name = "schedstat"
    try:
        ran = int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        text = f"{path} cannot be read: GIL, idle and run-queue times will be unknown"
        return Check(name, NOTE, text, value=False)
    if ran == 0:
        text = "the kernel keeps no scheduler statistics: GIL and run-queue times are unknown"
        return Check(name, NOTE, text, value=False)
    return Check(name, OK, "readable: GIL, idle and run-queue times are known", value=True)


def pidfd() -> Check:
    """Whether pidfds work, so that a reused pid is not mistaken for the old process."""
    name = "pidfd_open"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not in this Python"
        text = f"does not work ({why}): processes are identified by pid only"
        return Check(name, NOTE, text, value=False)
    return Check(name, OK, "works", value=True)


def ssh() -> Check:
    """An ssh client, for runs on other hosts."""
    path = shutil.which("ssh")
    if path is None:
        advice = "to watch runs on other hosts, install OpenSSH's client"
        return Check("ssh", NOTE, "no ssh client on the PATH", advice, False)
    return Check("ssh", OK, path, value=True)
