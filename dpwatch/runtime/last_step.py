"""The step a rank is in, in memory that its hub can still read after the process was killed.

A rank sends records every 125 to 250 ms, and unsent ones die with it. So it also keeps its step
number in a memory page that it shares with whoever has opened it: two numbers in an anonymous file
(`memfd_create`), which the hub opens as `/proc/PID/fd/FD`. Writing it takes no system call, and no
file system is involved that could be full or go away.

Linux only. Elsewhere, and if the hub cannot see the process, the last heartbeat is used instead.
"""

from __future__ import annotations

import mmap
import os
import struct

NAME = "dpwatch-step"

_FIELDS = struct.Struct("=qq")
"""The process id, so that no other process's file is taken for it, and its step."""


class LastStep:
    """This process's own file.

    Attributes:
        fd: Descriptor of the file, None without one.
        cell: Where to write the step, at index 0. Writing after `close` is allowed and has no
            effect.
    """

    def __init__(self) -> None:
        self.fd: int | None = None
        self.cell: memoryview[int] | list[int] = [0]
        try:
            fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
        except (AttributeError, OSError):  # another system, or no descriptor left
            return
        try:
            os.write(fd, _FIELDS.pack(os.getpid(), 0))
            self.cell = memoryview(mmap.mmap(fd, _FIELDS.size)).cast("q")[1:]
        except (OSError, ValueError):
            os.close(fd)
        else:
            self.fd = fd

    def close(self) -> None:
        """Closes the file; its memory is released once nothing refers to `cell` any more."""
        fd, self.fd = self.fd, None
        self.cell = [0]
        if fd is not None:
            os.close(fd)


def opened(pid: int, fd: int) -> int | None:
    """Opens the file of another process, to be read once that has ended; None if it can't be."""
    place = f"/proc/{pid}/fd/{fd}"
    try:
        if not os.readlink(place).startswith(f"/memfd:{NAME}"):
            return None
        return os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None


def read(fd: int, pid: int) -> int | None:
    """The step stored there, None if it is not such a file or belongs to another process."""
    try:
        held = os.pread(fd, _FIELDS.size, 0)
    except OSError:
        return None
    if len(held) != _FIELDS.size:
        return None
    of, step = _FIELDS.unpack(held)
    return step if of == pid and step >= 0 else None
