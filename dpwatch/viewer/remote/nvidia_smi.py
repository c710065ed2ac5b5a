"""Parses another host's GPUs and their processes from `nvidia-smi`'s output.

It prints two tables as CSV without header and units: memory in MiB, load in percent, power in
watts. Fields are separated by a comma and a space. Names may contain those too, so they come last.
Anything but a plain number (`[N/A]`, `[Not Supported]`, `[Insufficient Permissions]`, `ERR!`, a
locale's decimal comma) is unknown. The output is not a stable interface, so malformed lines are
skipped, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dpwatch.run.model.snapshot import GpuProcess, HostGpu

GPU_FIELDS = (
    "index",
    "uuid",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "memory.used",
    "memory.total",
    "name",
)
PROCESS_FIELDS = ("gpu_uuid", "pid", "used_memory", "process_name")

MOST_GPUS = 64
MOST_PROCESSES = 512
NAME_CHARS = 256
LEAST_C, MOST_C = -100.0, 1000.0
MOST_W = 1e5
MOST_MIB = 1 << 32
MOST_PID = (1 << 31) - 1

_MIB = 1 << 20
_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,6})?", re.ASCII)


def command(table: str, fields: Iterable[str]) -> str:
    """The shell command that queries a table."""
    return f"LC_ALL=C nvidia-smi --query-{table}={','.join(fields)} --format=csv,noheader,nounits"


def gpus(host: str, gpu_lines: Iterable[str], process_lines: Iterable[str]) -> tuple[HostGpu, ...]:
    """GPUs with their processes, in order of index.

    Args:
        host: Their host.
        gpu_lines: Lines of `GPU_FIELDS`.
        process_lines: Lines of `PROCESS_FIELDS`; those of unknown GPUs are ignored.
    """
    users = _processes(process_lines)
    found: dict[int, HostGpu] = {}
    for line in gpu_lines:
        fields = line.split(", ", len(GPU_FIELDS) - 1)
        if len(fields) < len(GPU_FIELDS):
            continue
        index = _number(fields[0], 0, 1 << 16)
        if index is None or len(found) >= MOST_GPUS:
            continue
        util = _number(fields[2], 0, 100)
        found[int(index)] = HostGpu(
            index=int(index),
            name=fields[-1].strip()[:NAME_CHARS],
            util=None if util is None else util / 100,
            temperature_c=_number(fields[3], LEAST_C, MOST_C),
            power_w=_number(fields[4], 0, MOST_W),
            used_bytes=_bytes(fields[5]),
            capacity_bytes=_bytes(fields[6]),
            processes=tuple(users.get(fields[1].strip(), ())),
            host=host,
        )
    return tuple(found[index] for index in sorted(found))


def _processes(lines: Iterable[str]) -> dict[str, list[GpuProcess]]:
    """Processes by their GPU's UUID; a MIG slice (`MIG-GPU-…/1/0`) counts as its GPU."""
    found: dict[str, list[GpuProcess]] = {}
    known = 0
    for line in lines:
        fields = line.split(", ", len(PROCESS_FIELDS) - 1)
        pid = _number(fields[1], 1, MOST_PID) if len(fields) == len(PROCESS_FIELDS) else None
        if pid is None or known >= MOST_PROCESSES:
            continue
        known += 1
        uuid = fields[0].strip().removeprefix("MIG-").partition("/")[0]
        name = fields[3].strip()
        if name.startswith("["):  # [Not Found], [N/A], [Insufficient Permissions]
            name = ""
        # Usually a path, without arguments.
        name = name.rpartition("/")[2][:NAME_CHARS]
        found.setdefault(uuid, []).append(GpuProcess(int(pid), name, _bytes(fields[2])))
    return found


def _number(text: str, least: float, most: float) -> float | None:
    """Parses a plain decimal number within bounds, None for anything else."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return value if least <= value <= most else None


def _bytes(mebibytes: str) -> int | None:
    value = _number(mebibytes, 0, MOST_MIB)
    return None if value is None else int(value * _MIB)
