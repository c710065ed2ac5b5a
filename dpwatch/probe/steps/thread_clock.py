"""What a thread's wall time was made of: running, waiting for a core, blocked.

`time.thread_time_ns` says how long the calling thread ran. Linux adds, in
`/proc/thread-self/schedstat`, how long it was ready while no core was free (the run queue);
what is then left of the wall time, the thread was blocked. The file stays open, since opening it
costs ten times a read, and it must have been opened by the thread it is to speak of.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from dpwatch.probe.foreign import own_fault, suppress_own

Sample = tuple[int, int, int]
"""Wall, on-CPU and run-queue nanoseconds; only differences mean anything."""

_TRUST_NS = 20_000_000


class ThreadClock:
    """Reads the calling thread's times; made on the thread that it is to read.

    Attributes:
        knows_runqueue: Whether the third figure is one: on Linux with scheduler statistics.
    """

    __slots__ = ("_fd", "knows_runqueue")

    def __init__(self) -> None:
        self._fd = -1
        with suppress_own(OSError):
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self.knows_runqueue = self._fd >= 0

    def read(self) -> Sample:
        """The thread's times up to now; about 2 µs."""
        queue = self._runqueue() if self._fd >= 0 else 0
        return time.monotonic_ns(), time.thread_time_ns(), queue

    def ran_ns(self) -> int | None:
        """How long the thread has run so far; from any thread. None where that isn't known."""
        try:
            return int(os.pread(self._fd, 96, 0).split()[0]) if self._fd >= 0 else None
        except (OSError, ValueError, IndexError):
            return None

    def close(self) -> None:
        """Closes the file; later samples know no run queue."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress_own(OSError):
                os.close(fd)

    def _runqueue(self) -> int:
        try:
            ran, queued, _ = os.pread(self._fd, 96, 0).split()
        except (OSError, ValueError) as error:
            own_fault(error, lambda _: self._distrust())
            return 0
        if ran == b"0" and time.thread_time_ns() > _TRUST_NS:  # a kernel that keeps no statistics
            self._distrust()
            return 0
        return int(queued)

    def _distrust(self) -> None:
        self.knows_runqueue = False
        self.close()

    def __del__(self) -> None:
        self.close()


class Clocks:
    """The clocks a probe reads. Tests pass their own."""

    wall: Callable[[], int] = staticmethod(time.monotonic_ns)

    def of_this_thread(self) -> ThreadClock:
        """A clock for the calling thread."""
        return ThreadClock()
