"""Passes viewers' requests for stacks to the ranks, through a file that ranks check.

However many viewers ask, ranks are asked at most once a second. Requests in between are combined,
and ranks with an outstanding answer are asked again with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dpwatch.hub.processes import state_of
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.stacks import PATIENCE_NS, STOPPED
from dpwatch.runtime.stack_request import MOST_RANKS, decode_request, write_request
from dpwatch.wire.messages import Asked, Unanswered

EVERY_S = 1.0
"""Least seconds between two requests to the ranks."""


class StackRequests:
    """Combines the requests of a run's viewers.

    Args:
        file: The file that ranks check.
        host: This host's name; process states are known only for its ranks.
    """

    def __init__(self, file: Path, host: str) -> None:
        self._file = file
        self._host = host
        self._number = 0
        self._wanted: set[int] = set()
        self._all = False
        self._next_s = 0.0

    def add(self, payload: bytes) -> bool:
        """Adds a viewer's request. Returns False if it is invalid."""
        request = decode_request(payload)
        if request is None:
            return False
        self._wanted.update(request.ranks)
        self._all = self._all or not request.ranks or len(self._wanted) > MOST_RANKS
        if self._all:
            self._wanted.clear()
        return True

    def catch_up(self, number: int) -> None:
        """Makes the next request's number at least this, since nodes use their head's numbers."""
        self._number = max(self._number, number - 1)

    def ask(self, state: RunState, now_s: float) -> Asked | None:
        """Asks the ranks if there is a request and it is due.

        Returns:
            The record to apply, None if nothing was asked.

        Raises:
            OSError: The file can't be written; the request is dropped.
        """
        if now_s < self._next_s or not (self._all or self._wanted):
            return None
        alive = [rank for rank in state.ranks.values() if rank.bye is None]
        ranks = [r.rank for r in alive if self._all or r.rank in self._wanted or r.dump.awaited]
        self._wanted.clear()
        self._all = False
        if not ranks:
            return None
        self._next_s = now_s + EVERY_S
        self._number += 1
        asked = Asked(self._number, ranks if len(ranks) <= MOST_RANKS else [])
        write_request(self._file, asked)
        return asked

    def unanswered(self, state: RunState, now_ns: int) -> Iterator[Unanswered]:
        """Yields ranks that newly do not answer, or whose process's state has changed since."""
        for rank in state.ranks.values():
            if rank.bye is not None or not rank.dump.awaited:
                continue
            process = self._process(rank)
            if rank.host != self._host and rank.dump.process:
                continue  # its own hub has reported the reason
            late = now_ns - rank.dump.asked_ns >= PATIENCE_NS
            if (late or process in STOPPED) and process != rank.dump.process:
                yield Unanswered(rank.rank, rank.pid, process)

    def _process(self, rank: RankState) -> str:
        return state_of(rank.pid) if rank.host == self._host else ""
