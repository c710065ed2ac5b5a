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
"""A view is at least so old before there is another one, …"""

PAUSE = 50
"""… and so many times as old as it took to make: viewers take 2 % of the hub's time at most."""

FRESH_S = 0.3
"""How old a review may be that a view is made of."""

CURVES_S = 1.0
"""How old a running run's curves may be, which look the same meanwhile."""


class Views:
    """The run as viewers see it, made once for all of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Not from 1 on: a viewer may still have one of the hub that was here before.
        self._writer = ViewWriter(time.time_ns())
        self._frames = -1
        self._reviewed: tuple[float, Run] | None = None
        self._next_at = self._curves_at = 0.0

    def reviewed(self, run: Run) -> None:
        """The hub has just summarized the run, so that a view of it costs little."""
        self._reviewed = self._clock(), run
        self._next_at = 0.0

    def forget(self) -> None:
        """The run has got another state, which does not go on from the one before."""
        self._writer.forget()
        self._reviewed, self._frames = None, -1

    def answer(self, state: RunState, request: Sequence[bytes]) -> bytes:
        """What a viewer gets that says which view it has, if any."""
        if state.frames != self._frames and (self._frames < 0 or self._clock() >= self._next_at):
            self._renew(state)
        seen = request[0] if request and len(request[0]) == VIEW_NUMBER.size else bytes(8)
        (since,) = VIEW_NUMBER.unpack(seen)
        return SAME if since == self._writer.number else VIEW + self._writer.message(since)

    def _renew(self, state: RunState) -> None:
        began = self._clock()
        at, run = self._reviewed or (0.0, None)
        if run is None or began - at > FRESH_S:
            run = summarize(state)
        curves = began >= self._curves_at or run.state != "running"
        self._writer.renew(state, run, curves=curves)
        self._frames, self._reviewed = state.frames, None
        took_s = self._clock() - began
        self._next_at = began + max(LEAST_S, PAUSE * took_s)
        if curves:
            self._curves_at = began + max(CURVES_S, PAUSE * took_s)
