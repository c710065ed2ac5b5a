"""Watches ranks' processes on this host for their end, and reads their exit codes.

A pidfd becomes readable when its process ends (Linux 5.3); without pidfds, poll `runs`. The exit
code is in `/proc/PID/stat` until the parent reaps the process; from Linux 6.15 on, the pidfd still
provides it afterwards.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from pathlib import Path

from dpwatch.runtime.processes import exists

_EXIT_CODE = -1
"""The last field of `/proc/PID/stat`: the status that `wait` will return."""


MOST = 4096
"""Limit on watched processes; for others, and if file descriptors run out, `runs` is polled."""

_INFO = struct.Struct("=QQ11Ii")
"""`struct pidfd_info` of linux/pidfd.h: first the request mask, last the wait status."""

_GET_INFO = 0xC000FF0B | _INFO.size << 16
"""`PIDFD_GET_INFO`, with the ioctl encoding of x86 and arm; elsewhere the call just fails."""

_INFO_EXIT = 1 << 3


class Processes:
    """Watches processes for their end."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self._pids: dict[int, int] = {}

    def watch(self, pid: int) -> int | None:
        """Starts to watch a process. Returns a descriptor to poll, None if it can't be watched."""
        if pid in self._pids or len(self._pids) >= MOST:
            return None
        try:
            fd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # unsupported, process gone, or out of descriptors
            return None
        self._pids[pid] = fd
        self._fds[fd] = pid
        return fd

    def watches(self, pid: int) -> bool:
        """Whether a process is watched."""
        return pid in self._pids

    def pid_of(self, fd: int) -> int:
        """The process of a descriptor."""
        return self._fds[fd]

    def exit_of(self, fd: int) -> int | None:
        """Exit code of a descriptor's process (see `exit_of`), on Linux 6.15 even once reaped."""
        code = exit_of(self._fds[fd])
        return _exit_by(fd) if code is None else code

    @property
    def fds(self) -> list[int]:
        """All descriptors to poll."""
        return list(self._fds)

    def ended(self) -> list[int]:
        """Descriptors of processes that have ended; does not block."""
        poller = select.poll()
        for fd in self._fds:
            poller.register(fd, select.POLLIN)
        return [fd for fd, _ in poller.poll(0)]

    def forget(self, fd: int) -> None:
        """Closes a descriptor."""
        del self._pids[self._fds.pop(fd)]
        os.close(fd)

    def close(self) -> None:
        """Closes all descriptors."""
        for fd in self.fds:
            self.forget(fd)


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    if not exists(pid):
        return False
    stat = _stat(pid)
    return not stat or stat[0] not in ("Z", "X")


def state_of(pid: int) -> str:
    """A process's kernel state (`R`, `S`, `D`, `T`), "" if unknown."""
    stat = _stat(pid)
    return stat[0] if stat else ""


def exit_of(pid: int) -> int | None:
    """Exit code of an ended process, or minus the signal that killed it.

    None if it is unknown: the process runs, was reaped already, or the system hides it.
    """
    stat = _stat(pid)
    if not stat or stat[0] not in ("Z", "X"):
        return None
    return _exit_code(int(stat[_EXIT_CODE]))


def _exit_by(pidfd: int) -> int | None:
    """Like `exit_of`, but also for a reaped process; None before Linux 6.15."""
    info = bytearray(_INFO.size)
    _INFO.pack_into(info, 0, _INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    known, *_, status = _INFO.unpack(info)
    return _exit_code(status) if known & _INFO_EXIT else None


def _exit_code(status: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:
        return None


def _stat(pid: int) -> list[str]:
    """Fields of `/proc/PID/stat` from the state on, empty if it can't be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
