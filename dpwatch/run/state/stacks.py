"""Ranks' Python stacks, as a run's state keeps them.

A rank's last answer stays until the next one. All ranks' together have a budget, of which each has
its share: where there are many ranks, threads that do not train are let go first.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from dpwatch.wire.messages import Stacks, ThreadStack

BUDGET_CHARS = 8 << 20
"""What all ranks' stacks may take together …"""

LEAST_CHARS = 4096
"""… as long as this is a rank's share, which always holds the training thread's."""

MOST_THREADS, MOST_FRAMES, FRAME_CHARS = 32, 32, 120
"""What a rank sends at most; a rank that sends more is cut."""


PATIENCE_NS = 3_000_000_000
"""A rank looks for requests twice a second: one that has not answered by then does not."""

STOPPED = ("T", "t")
"""States of a process that will not answer for as long as they last."""


class Dump(msgspec.Struct):
    """What is known of one rank's stacks.

    Attributes:
        asked: Number of the latest request that went to it, 0 for none.
        asked_ns: When the first went out that it has not answered.
        process: State of its process (see `Unanswered`) while it does not answer, None before
            that is known.
        stacks: Its last answer.
    """

    asked: int = 0
    asked_ns: int = 0
    process: str | None = None
    stacks: Stacks | None = None

    @property
    def awaited(self) -> bool:
        """Whether it has been asked and has not answered."""
        return self.asked > (self.stacks.asked if self.stacks else 0)

    def ask(self, number: int, now_ns: int) -> None:
        """It is asked (again)."""
        if not self.awaited:
            self.asked_ns, self.process = now_ns, None
        self.asked = number

    def take(self, answer: Stacks, ranks: int) -> None:
        """It answers, as one of so many ranks."""
        bounded = _bounded(answer, max(LEAST_CHARS, BUDGET_CHARS // max(ranks, 1)))
        # A killed hub's requests had numbers of their own, which its successor has not reached.
        self.stacks = replace(bounded, asked=min(answer.asked, self.asked))
        if not self.awaited:
            self.process = None


def _bounded(answer: Stacks, chars: int) -> Stacks:
    """The answer within limits; what is left out is counted."""
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
