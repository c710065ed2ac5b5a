"""Python stacks of ranks, as kept in a run's state.

A rank's last answer stays until its next one. All ranks share one budget equally; with many ranks,
threads other than the training thread are dropped first.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from dpwatch.wire.messages import Stacks, ThreadStack

BUDGET_CHARS = 8 << 20
"""Budget of all ranks together, in characters."""

LEAST_CHARS = 4096
"""Minimum share of a rank, in characters; the training thread's stack is always kept."""

MOST_THREADS, MOST_FRAMES, FRAME_CHARS = 32, 32, 120
"""Limits that a rank's probe observes; longer answers are cut."""


PATIENCE_NS = 3_000_000_000
"""Ranks check for requests twice a second; one that takes longer than this is not answering."""

STOPPED = ("T", "t")
"""Kernel states in which a process can't answer."""


class StackDump(msgspec.Struct):
    """Stacks of one rank, and the state of the request for them.

    Attributes:
        asked: Number of the latest request to it, 0 for none.
        asked_ns: When the first unanswered request was made.
        process: State of its process (see `Unanswered`) while it does not answer, None until known.
        stacks: Its last answer.
    """

    asked: int = 0
    asked_ns: int = 0
    process: str | None = None
    stacks: Stacks | None = None

    @property
    def awaited(self) -> bool:
        """Whether a request is unanswered."""
        return self.asked > (self.stacks.asked if self.stacks else 0)

    def ask(self, number: int, now_ns: int) -> None:
        """Records a request."""
        if not self.awaited:
            self.asked_ns, self.process = now_ns, None
        self.asked = number

    def store(self, answer: Stacks, ranks: int) -> None:
        """Stores an answer, cut to its share among `ranks` ranks."""
        bounded = _bounded(answer, max(LEAST_CHARS, BUDGET_CHARS // max(ranks, 1)))
        # An answer to a killed hub may have a number that its successor has not reached.
        self.stacks = replace(bounded, asked=min(answer.asked, self.asked))
        if not self.awaited:
            self.process = None


def _bounded(answer: Stacks, chars: int) -> Stacks:
    """Cuts an answer to the limits, and counts the threads left out."""
    kept: list[ThreadStack] = []
    for thread in answer.threads[:MOST_THREADS]:
        frames = [frame[:FRAME_CHARS] for frame in thread.frames[:MOST_FRAMES]]
        theirs = thread.theirs if thread.theirs in range(len(frames)) else None
        thread = replace(thread, name=thread.name[:FRAME_CHARS], frames=frames, theirs=theirs)
        chars -= len(thread.name) + sum(map(len, frames))
        if kept and chars < 0:
            break
        kept.append(thread)
    left_out = max(0, answer.left_out) + len(answer.threads) - len(kept)
    return replace(answer, threads=kept, left_out=left_out)
