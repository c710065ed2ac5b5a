"""The ranks' processes on this host: that one has ended is known at once, and mostly how.

A pidfd becomes readable when its process ends (Linux 5.3); where there is none, `runs` has to be
asked. How a process ended stands in `/proc/PID/stat` until its parent has fetched it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_EXIT_CODE = -1
"""The last field of `/proc/PID/stat`: the status that `wait` will return."""


class Processes:
    """Watches processes for their end."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self._pids: dict[int, int] = {}

    def watch(self, pid: int) -> int | None:
        """Begins to watch a process. Returns: a file descriptor to poll; None if there is none."""
        if pid in self._pids:
            return None
        try:
            fd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # another system, an old kernel, gone, out of files
            return None
        self._pids[pid] = fd
        self._fds[fd] = pid
        return fd

    def watches(self, pid: int) -> bool:
        """Whether that process's end will be told."""
        return pid in self._pids

    def pid_of(self, fd: int) -> int:
        """Whose descriptor it is."""
        return self._fds[fd]

    @property
    def fds(self) -> list[int]:
        """All descriptors that are polled."""
        return list(self._fds)

    def forget(self, fd: int) -> None:
        """Closes a descriptor."""
        del self._pids[self._fds.pop(fd)]
        os.close(fd)

    def close(self) -> None:
        """Closes all."""
        for fd in self.fds:
            self.forget(fd)


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie waiting for its parent."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = _stat(pid)
    return not stat or stat[0] not in ("Z", "X")


def state_of(pid: int) -> str:
    """A process's state as the kernel's letter (`R`, `S`, `D`, `T`), "" where it can't be told."""
    stat = _stat(pid)
    return stat[0] if stat else ""


def exit_of(pid: int) -> int | None:
    """How a process that has ended did: its exit code, or minus the signal that ended it.

    None where that can't be told: its parent was faster, or the system keeps it to itself.
    """
    stat = _stat(pid)
    if not stat or stat[0] not in ("Z", "X"):
        return None
    try:
        return os.waitstatus_to_exitcode(int(stat[_EXIT_CODE]))
    except ValueError:
        return None


def told(code: int | None) -> str:
    """An exit for a sentence: `was killed by SIGKILL`, `ended with exit code 3`."""
    if code is None:
        return "is gone without a word"
    if code >= 0:
        return f"ended with exit code {code} and without a word"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def _stat(pid: int) -> list[str]:
    """Fields of `/proc/PID/stat` from the state on, none where it can't be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
