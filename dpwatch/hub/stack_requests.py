"""The hub's end of asking ranks for their stacks: viewers' requests in, a file for the ranks out.

However many viewers ask, ranks are asked once a second at most; what comes meanwhile is asked
together, and ranks that still owe an answer are asked along with the others.
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
"""How often ranks may be asked."""


class Asking:
    """Requests of one run's viewers.

    Args:
        file: What the ranks look at.
        host: This host's name: of ranks on others nothing is known but their silence.
    """

    def __init__(self, file: Path, host: str) -> None:
        self._file = file
        self._host = host
        self._number = 0
        self._wanted: set[int] = set()
        self._all = False
        self._next_s = 0.0

    def take(self, payload: bytes) -> bool:
        """Takes in a viewer's request. Returns: False if it is none."""
        request = decode_request(payload)
        if request is None:
            return False
        self._wanted.update(request.ranks)
        self._all = self._all or not request.ranks or len(self._wanted) > MOST_RANKS
        if self._all:
            self._wanted.clear()
        return True

    def catch_up(self, number: int) -> None:
        """The next request has this number at least: a head's hubs count as it does."""
        self._number = max(self._number, number - 1)

    def ask(self, state: RunState, now_s: float) -> Asked | None:
        """Asks the ranks, if somebody wants it and it is time.

        Returns:
            What was asked, to be said to all viewers.

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
        """Ranks that do not answer, when that is found and when what keeps them changes."""
        for rank in state.ranks.values():
            if rank.bye is not None or not rank.dump.awaited:
                continue
            process = self._process(rank)
            if rank.host != self._host and rank.dump.process:
                continue  # its own hub has said what keeps it
            late = now_ns - rank.dump.asked_ns >= PATIENCE_NS
            if (late or process in STOPPED) and process != rank.dump.process:
                yield Unanswered(rank.rank, rank.pid, process)

    def _process(self, rank: RankState) -> str:
        return state_of(rank.pid) if rank.host == self._host else ""
