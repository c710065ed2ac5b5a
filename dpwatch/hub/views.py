"""What viewers are shown of the run: made when one asks, and as often as costs little."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.derive.view_messages import ViewWriter
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.viewer_messages import SAME, VIEW, VIEW_NUMBER

LEAST_S = 0.2
"""A view is at least so old before it is made anew, …"""

PAUSE = 50
"""… and so many times as old as the CPU time it took: viewers take 2 % of a core at most."""

CURVES_S = 1.0
"""How old a running run's curves may be, which look the same meanwhile."""

WATCHED_S = 5.0
"""A viewer that has asked for nothing for so long has gone, or stands still."""


class Views:
    """The run as viewers see it, made once for all of them.

    Args:
        clock: Seconds.
        cpu_clock: Seconds that this thread has run.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        # Not from 1 on: a viewer may still have one of the hub that was here before.
        self._writer = ViewWriter(time.time_ns())
        self._frames = -1
        self._asked_at = -WATCHED_S
        self._due_at = self._curves_at = 0.0

    @property
    def is_watched(self) -> bool:
        """Whether a viewer is there."""
        return self._clock() - self._asked_at < WATCHED_S

    def reviewed(self, state: RunState, run: Run) -> None:
        """The hub has just summarized the run, so that a view of it costs little."""
        if self.is_watched:
            self._renew(state, run)

    def forget(self) -> None:
        """The run has got another state, which does not go on from the one before."""
        self._writer.forget()
        self._frames = -1

    def answer(self, state: RunState, request: Sequence[bytes]) -> bytes:
        """What a viewer gets that says which view it has, if any."""
        self._asked_at = now = self._clock()
        if self._frames < 0 or (state.frames != self._frames and now >= self._due_at):
            began = self._cpu_clock()
            self._renew(state, summarize(state))
            self._due_at = now + max(LEAST_S, PAUSE * (self._cpu_clock() - began))
        seen = request[0] if request and len(request[0]) == VIEW_NUMBER.size else bytes(8)
        (since,) = VIEW_NUMBER.unpack(seen)
        return SAME if since == self._writer.number else VIEW + self._writer.message(since)

    def _renew(self, state: RunState, run: Run) -> None:
        now, began = self._clock(), self._cpu_clock()
        curves = now >= self._curves_at or run.state != "running"
        self._writer.renew(state, run, curves=curves)
        self._frames = state.frames
        if curves:
            self._curves_at = now + max(CURVES_S, PAUSE * (self._cpu_clock() - began))
