"""The steps that this host's ranks are in, read when their processes have ended."""

from __future__ import annotations

import contextlib
import os

from dpwatch.runtime import last_step

MOST = 4096
"""Processes; of more, the last heartbeat says it."""


class LastSteps:
    """Holds what their processes write, by process."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def hold(self, pid: int, fd: int | None) -> None:
        """Opens a process's, whose own descriptor it is: another one where it has begun anew."""
        if fd is None or (pid not in self._fds and len(self._fds) >= MOST):
            return
        found = last_step.opened(pid, fd)
        if found is not None:
            before, self._fds[pid] = self._fds.get(pid), found
            if before is not None:
                os.close(before)

    def take(self, pid: int) -> int | None:
        """The step that a process was in when it ended; None where it isn't known, or was taken."""
        fd = self._fds.pop(pid, None)
        if fd is None:
            return None
        try:
            return last_step.read(fd, pid)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Gives all descriptors back."""
        for fd in self._fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
