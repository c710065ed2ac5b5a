"""Which threads train: found by who calls backward, whichever thread the probe was started in.

The first one takes over the lane that the probe was started with; others that train beside it
(models of their own, or one shared without locks) get a lane and a row each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from dpwatch.probe.steps.lanes import MainLane, here
from dpwatch.probe.steps.tracker import Steps
from dpwatch.wire.messages import DeviceInfo

MOST = 8
"""Threads that are followed at once."""


class Threads:
    """The training threads of this process.

    Attributes:
        first: The steps of the first.
    """

    def __init__(
        self, first: Steps, make: Callable[[int], Steps], moved: Callable[[MainLane], None]
    ) -> None:
        """Begins with the calling thread.

        Args:
            first: Its steps.
            make: Makes the steps of another thread, told under that device.
            moved: Told the lane of the first training thread, once another one than this is it.
        """
        self.first = first
        self._make = make
        self._moved = moved
        self._others: list[Steps] = []
        self._lock = threading.Lock()
        self._closed = False

    def newcomer(self) -> MainLane | None:
        """The calling thread, which has no lane, calls backward. Returns: its lane, if it gets one.

        Not where autograd's own thread does, for reentrant checkpointing.
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
            lane = first.move()
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
        """Those of the threads besides the first."""
        return iter([steps.main for steps in self._others])

    def close(self) -> None:
        """Takes in nobody any more."""
        self._closed = True
