"""Finds the threads that train: those that call backward, whichever thread started the probe.

The first one takes over the lane that the probe was started with; others that train beside it (own
models, or a model shared without locks) get a lane and a row each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from dpwatch.probe.steps.lanes import MainLane, here
from dpwatch.probe.steps.tracker import Steps
from dpwatch.wire.messages import DeviceInfo

MOST = 8
"""Threads that are tracked at once."""


class Threads:
    """The training threads of this process.

    Attributes:
        first: The steps of the first.
    """

    def __init__(
        self, first: Steps, make: Callable[[int], Steps], moved: Callable[[MainLane], None]
    ) -> None:
        """Starts with the calling thread.

        Args:
            first: Its steps.
            make: Creates the steps of another thread, reported under that device index.
            moved: Called with the new lane if the first training thread is another one.
        """
        self.first = first
        self._make = make
        self._moved = moved
        self._others: list[Steps] = []
        self._lock = threading.Lock()
        self._closed = False

    def newcomer(self) -> MainLane | None:
        """Gives a lane to the calling thread, which calls backward without one.

        Returns:
            None if it gets none, such as an autograd thread in reentrant checkpointing.
        """
        if self._closed or torch._C._current_graph_task_id() != -1:
            return None
        with self._lock:
            lane = self._lane()
        if lane is not None:
            here.lane = lane
        return lane

    def _lane(self) -> MainLane | None:
        first = self.first
        if not first.step and not first.backwards:
            lane = first.move_to_current_thread()
            self._moved(lane)
            return lane
        if len(self._others) + 1 >= MOST or not first.devices:
            return None
        device = max(len(first.devices), max(first.lanes) + 1)
        name = threading.current_thread().name
        first.devices += [DeviceInfo("cpu", "cpu")] * (device - len(first.devices))
        first.devices.append(DeviceInfo(f"cpu ({name})"[:60], "cpu"))
        steps = self._make(device)
        steps.own_threads = first.own_threads
        self._others.append(steps)
        return steps.main

    def lanes(self) -> Iterator[MainLane]:
        """Lanes of all training threads but the first."""
        return iter([steps.main for steps in self._others])

    def close(self) -> None:
        """Accepts no more threads."""
        self._closed = True
