"""Resident memory of the process, from the operating system."""

from __future__ import annotations

import os
import resource
import sys

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def resident_bytes() -> int | None:
    """Resident memory now, None where /proc does not tell."""
    told = _read("/proc/self/statm")
    try:
        return None if told is None else int(told.split()[1]) * _PAGE_BYTES
    except (IndexError, ValueError):
        return None


def peak_resident_bytes() -> int:
    """The highest it has been since this program began (or since somebody reset it)."""
    # The kernel's rusage keeps what the process had before it became this program by exec.
    for line in (_read("/proc/self/status") or b"").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def _read(path: str) -> bytes | None:
    """A short file, without Python's file objects, which take several times as long to make."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, 4096)
    except OSError:
        return None
    finally:
        os.close(file)
