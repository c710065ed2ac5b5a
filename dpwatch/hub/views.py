"""Answers viewers with views of the run, created on demand and only as often as is cheap."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dpwatch.run.derive.summarize import elapsed_s, summarize
from dpwatch.run.derive.view_messages import ViewWriter
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.viewer_messages import SAME, VIEW, VIEW_NUMBER

LEAST_S = 0.2
"""Least age of a view before the next one is created, in seconds."""

PAUSE = 50
"""The same as a multiple of its CPU time, so that views take 2 % of a core at most."""

CURVES_S = 1.0
"""Maximum age of a running run's curves; of a younger run's a tenth of its own age."""

WATCHED_S = 5.0
"""A viewer that has not asked for this long has gone or is stopped."""


class Views:
    """Views of a run, shared by all viewers.

    Args:
        clock: Seconds.
        cpu_clock: CPU seconds of this thread.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        # Not from 1 on: a viewer may still have a view of an earlier hub.
        self._writer = ViewWriter(time.time_ns())
        self._frames = -1
        self._asked_at = -WATCHED_S
        self._due_at = self._curves_at = 0.0

    @property
    def is_watched(self) -> bool:
        """Whether a viewer is connected."""
        return self._clock() - self._asked_at < WATCHED_S

    def reviewed(self, state: RunState, run: Run) -> None:
        """Creates a view from a summary that the hub has just made, if the run is watched."""
        if self.is_watched:
            self._update(state, run)

    def forget(self) -> None:
        """Forgets earlier views, since the state was replaced or merged."""
        self._writer.forget()
        self._frames = -1

    def answer(self, state: RunState, request: Sequence[bytes]) -> bytes:
        """Answers a viewer's request, which contains the number of its view, if any."""
        self._asked_at = now = self._clock()
        if self._frames < 0 or (state.frames != self._frames and now >= self._due_at):
            began = self._cpu_clock()
            self._update(state, summarize(state))
            self._due_at = now + max(LEAST_S, PAUSE * (self._cpu_clock() - began))
        seen = request[0] if request and len(request[0]) == VIEW_NUMBER.size else bytes(8)
        (since,) = VIEW_NUMBER.unpack(seen)
        return SAME if since == self._writer.number else VIEW + self._writer.message(since)

    def _update(self, state: RunState, run: Run) -> None:
        now, began = self._clock(), self._cpu_clock()
        curves = now >= self._curves_at or run.state != "running"
        self._writer.update(state, run, curves=curves)
        self._frames = state.frames
        if curves:
            age_s = min(CURVES_S, (elapsed_s(state) or 0.0) / 10)
            self._curves_at = now + max(age_s, PAUSE * (self._cpu_clock() - began))
