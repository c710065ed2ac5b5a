"""Reads which step a rank of this host was in when its process ended."""

from __future__ import annotations

import contextlib
import os

from dpwatch.runtime import last_step

MOST = 4096
"""Limit on processes; for others the last heartbeat tells the step."""


class LastSteps:
    """Holds descriptors of the memory that ranks write their step to, by process."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def hold(self, pid: int, fd: int | None) -> None:
        """Opens a process's memory, given its own descriptor `fd`; replaces an earlier one."""
        if fd is None or (pid not in self._fds and len(self._fds) >= MOST):
            return
        found = last_step.opened(pid, fd)
        if found is not None:
            before, self._fds[pid] = self._fds.get(pid), found
            if before is not None:
                os.close(before)

    def pop(self, pid: int) -> int | None:
        """The step that a process was in when it ended, None if unknown; works only once."""
        fd = self._fds.pop(pid, None)
        if fd is None:
            return None
        try:
            return last_step.read(fd, pid)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Closes all descriptors."""
        for fd in self._fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
