"""The bounded queue through which the training thread hands over plain tuples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

RecordSink = Callable[[tuple[Any, ...]], None]
"""Takes `(RecordClass, field, field, …)`, such as `(Memory, device, step, …)`, in field order.

One bounded append, from any thread; the sender thread creates the Struct.
"""

CAPACITY = 16_384
"""Records kept until they are drained: about a minute of 20 ms steps with collectives."""


class Recorder:
    """A bounded queue that never blocks its callers: when full, the oldest record is dropped.

    Attributes:
        dropped: Records dropped so far. Counted without a lock: two threads that both find the
            queue full at the same moment may count once.
    """

    __slots__ = ("_queue", "capacity", "dropped")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._queue: deque[tuple[Any, ...]] = deque(maxlen=capacity)

    def append(self, record: tuple[Any, ...]) -> None:
        """Adds `(RecordClass, field, …)`; from any thread, in well under a microsecond."""
        queue = self._queue
        if len(queue) >= self.capacity:
            self.dropped += 1
        queue.append(record)

    def drain(self, most: int) -> list[tuple[Any, ...]]:
        """Removes up to `most` records, oldest first; called by one thread only."""
        queue = self._queue
        return [queue.popleft() for _ in range(min(most, len(queue)))]

    def __len__(self) -> int:
        return len(self._queue)

    def silence(self) -> None:
        """Drops everything from now on, as in a forked child."""
        self.capacity = 0
        self._queue = deque(maxlen=0)
