"""Resident memory of the process, from the operating system."""

from __future__ import annotations

import os
import resource
import sys
from typing import NamedTuple

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Resident(NamedTuple):
    """Bytes: now, None where nobody tells; and the highest since this program began."""

    now: int | None
    peak: int


def resident() -> Resident:
    """One look, some 40 µs. What somebody has reset (`/proc/self/clear_refs`) counts from there."""
    # Not by the kernel's rusage, which keeps what the process had before it became this program.
    status = _read("/proc/self/status") or b""
    now, peak = _kibibytes(status, b"\nVmRSS:"), _kibibytes(status, b"\nVmHWM:")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    return Resident(now, max(now or 0, peak))


def _kibibytes(status: bytes, name: bytes) -> int | None:
    _, found, rest = status.partition(name)
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def _read(path: str) -> bytes | None:
    """A short file, without Python's file objects, which take several times as long to make."""
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
