"""What a thread's wall time consisted of: running, waiting for a core, blocked.

`time.thread_time_ns` tells how long the calling thread ran. On Linux, `/proc/thread-self/schedstat`
adds how long it was ready while no core was free (the run queue); the rest of the wall time, the
thread was blocked. The file stays open, since opening it costs ten times a read, and it must be
opened by the thread it describes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from dpwatch.probe.foreign import own_fault, suppress_own

Sample = tuple[int, int, int]
"""Wall, on-CPU and run-queue nanoseconds; only differences are meaningful."""

_TRUST_NS = 20_000_000


class ThreadClock:
    """Reads the calling thread's times; must be created on that thread.

    Attributes:
        knows_runqueue: Whether the third value is valid: on Linux with scheduler statistics.
    """

    __slots__ = ("_fd", "knows_runqueue")

    def __init__(self) -> None:
        self._fd = -1
        with suppress_own(OSError):
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self.knows_runqueue = self._fd >= 0

    def read(self) -> Sample:
        """The thread's times so far; takes about 2 µs."""
        queue = self._runqueue() if self._fd >= 0 else 0
        return time.monotonic_ns(), time.thread_time_ns(), queue

    def ran_ns(self) -> int | None:
        """How long the thread has run so far; from any thread. None if unknown."""
        try:
            return int(os.pread(self._fd, 96, 0).split()[0]) if self._fd >= 0 else None
        except (OSError, ValueError, IndexError):
            return None

    def close(self) -> None:
        """Closes the file; later samples have no run-queue time."""
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

    def __del__(
        self,
        close: Callable[[int], None] = os.close,
        suppress: type[suppress_own] = suppress_own,
    ) -> None:
        # As the interpreter ends, this module's names may be gone before the last clock.
        if self._fd >= 0:
            with suppress(OSError):
                close(self._fd)


class Clocks:
    """The clocks a probe reads; tests replace them."""

    wall: Callable[[], int] = staticmethod(time.monotonic_ns)

    def of_this_thread(self) -> ThreadClock:
        """A clock for the calling thread."""
        return ThreadClock()
