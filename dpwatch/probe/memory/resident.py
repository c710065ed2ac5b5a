"""Resident memory of the process, from the operating system."""

from __future__ import annotations

import os
import resource
import sys
from typing import NamedTuple

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Resident(NamedTuple):
    """Bytes: now, None if unknown; and the highest since this program started."""

    now: int | None
    peak: int


def resident() -> Resident:
    """Reads both, in about 40 µs. After a reset (`/proc/self/clear_refs`) the peak starts over."""
    # Not from rusage, whose maximum includes the time before this program was exec'ed.
    status = _read("/proc/self/status") or b""
    now, peak = _kibibytes(status, b"\nVmRSS:"), _kibibytes(status, b"\nVmHWM:")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    return Resident(now, max(now or 0, peak))


def _kibibytes(status: bytes, name: bytes) -> int | None:
    _, found, rest = status.partition(name)
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def _read(path: str) -> bytes | None:
    """Reads a short file without Python's file objects, which take several times as long."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, 8192)
    except OSError:
        return None
    finally:
        os.close(file)
