"""Keeps a hub's file descriptors and memory within limits, whatever others send.

libzmq aborts the process if it has no file descriptor for a new connection, and buffers incomplete
multipart messages without a limit. So the hub checks its own usage ten times a second, and acts
before either runs out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from pathlib import Path

from dpwatch.runtime import cgroup_limits

CHECK_S = 0.1
LEAST_BYTES = 1 << 30
MOST_FILES = 1 << 16

_FILES = Path("/proc/self/fd")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Guard:
    """Compares a hub's open files and memory with their limits.

    Args:
        most_files: Limit on open files, above which connections are refused; by default half of
            the process's limit.
        most_bytes: Limit on resident memory; by default a quarter of the host's.
    """

    def __init__(self, most_files: int | None = None, most_bytes: int | None = None) -> None:
        self.most_files = _allowed_files() // 2 if most_files is None else most_files
        self.most_bytes = _quarter() if most_bytes is None else most_bytes

    def is_crowded(self) -> bool:
        """Whether there are too many connections."""
        return _open_files() > self.most_files

    def is_large(self) -> bool:
        """Whether this process uses more memory than any run needs."""
        return _resident_bytes() > self.most_bytes


class RateLimitedLog:
    """Logs the 1st, 2nd, 4th, 8th … occurrence of an event, so that the log stays small."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self.times = 0
        self._logger = logger
        self._what = what

    def log(self, last: object, more: int = 1) -> None:
        """Counts `more` occurrences; `last` describes the last one."""
        before, self.times = self.times, self.times + more
        if before.bit_length() < self.times.bit_length():
            self._logger.warning("%s: %d so far; last: %s", self._what, self.times, last)


def allow_files() -> None:
    """Raises this process's limit on open files as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _allowed_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES)


def _open_files() -> int:
    try:
        # Since Linux 6.2 the directory's size is the count; listing thousands takes milliseconds.
        return os.stat(_FILES).st_size or len(os.listdir(_FILES))
    except OSError:  # no /proc, or no descriptor left to read it
        return 0


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _quarter() -> int:
    host = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    return max(LEAST_BYTES, min(cgroup_limits.memory_limit() or host, host) // 4)
