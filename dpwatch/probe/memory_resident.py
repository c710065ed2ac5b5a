"""Resident memory of the process, from the operating system."""

from __future__ import annotations

import os
import resource
import sys

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def resident_bytes() -> int | None:
    """Resident memory now, None where /proc does not tell."""
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:  # without Python's files, which take several times as long to make
        return int(os.read(statm, 128).split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
    finally:
        os.close(statm)


def peak_resident_bytes() -> int:
    """The highest it has been since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
