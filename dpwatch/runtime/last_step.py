"""The step that a rank is in, where its hub still finds it once the process has been killed.

What a rank tells goes out every 125 to 250 ms, and what it was about to tell dies with it. So it
keeps the number of its step in a page of memory that it shares with whoever has opened it: two
numbers in an anonymous file (`memfd_create`), which the hub opens as `/proc/PID/fd/FD`. To write it
takes no system call, and no file system can run full or vanish under it.

Linux only. Elsewhere, and where the hub can't see the process, the last heartbeat has to do.
"""

from __future__ import annotations

import mmap
import os
import struct

NAME = "dpwatch-step"

_FIELDS = struct.Struct("=qq")
"""The process's own id, so that no other's can be taken for it, and its step."""


class LastStep:
    """A process's own.

    Attributes:
        fd: The file's descriptor, None where there is none.
        cell: Where the step is to be written, at 0. After `close` it may still be, in vain.
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
        """Gives file and memory back; the latter once nobody writes there any more."""
        fd, self.fd = self.fd, None
        self.cell = [0]
        if fd is not None:
            os.close(fd)


def opened(pid: int, fd: int) -> int | None:
    """Opens a process's, to be read when it has ended. Returns: a descriptor, None if it can't."""
    place = f"/proc/{pid}/fd/{fd}"
    try:
        if not os.readlink(place).startswith(f"/memfd:{NAME}"):
            return None
        return os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None


def read(fd: int, pid: int) -> int | None:
    """The step that stands there, None if it is no such file or another process's."""
    try:
        held = os.pread(fd, _FIELDS.size, 0)
    except OSError:
        return None
    if len(held) != _FIELDS.size:
        return None
    of, step = _FIELDS.unpack(held)
    return step if of == pid and step >= 0 else None
