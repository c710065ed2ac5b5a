"""Ranks' Python stacks, grouped by where their training threads are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from dpwatch.wire.messages import ThreadStack


class RankStacks(msgspec.Struct, frozen=True):
    """One rank's stacks.

    Attributes:
        asked: Number of the latest request sent to it, 0 for none.
        answered: Number of the request that `threads` answer, 0 for none.
        standing: `answered`, `awaited`, `silent` (overdue), `ended`, `unasked`.
        why: Why there is no (newer) answer, or none of the training thread; else "".
        waited_s: How long an answer has been awaited, None if none is.
        age_s: The age of the stacks, None without any.
        threads: The training thread first; frames outermost first.
        left_out: How many more threads there are.
        seen_at: `file:line function` from its last heartbeat …
        seen_s: … and the age of that, None without one.
    """

    rank: int
    host: str
    pid: int
    asked: int
    answered: int
    standing: str
    why: str
    waited_s: float | None
    age_s: float | None
    threads: tuple[ThreadStack, ...] = ()
    left_out: int = 0
    seen_at: str = ""
    seen_s: float | None = None


class Group(msgspec.Struct, frozen=True):
    """Ranks whose training threads have the same stack, or lack one for the same reason.

    Attributes:
        entries: The ranks.
        frames: Their common stack, outermost first; none if they have not answered.
        theirs: Index of the innermost frame of the user's code.
    """

    entries: tuple[RankStacks, ...]
    frames: tuple[str, ...] = ()
    theirs: int | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks' numbers."""
        return tuple(entry.rank for entry in self.entries)

    @property
    def at(self) -> str:
        """Where they are, in a line: the innermost frame of the user's code, else the innermost."""
        if not self.frames:
            return ""
        return self.frames[-1 if self.theirs is None else self.theirs]


def groups(entries: Iterable[RankStacks]) -> list[Group]:
    """The ranks grouped by the stack of their training threads, in order of first rank."""
    found: dict[object, list[RankStacks]] = {}
    for entry in entries:
        thread = _training(entry)
        key: object = (entry.standing, entry.why)
        if entry.standing == "answered" and thread is not None:
            key = tuple(thread.frames)
        elif entry.standing == "silent":
            key = ("silent", entry.why.partition(": ")[2])  # whatever the time of each
        found.setdefault(key, []).append(entry)
    return [_group(alike) for alike in found.values()]


def _group(alike: Sequence[RankStacks]) -> Group:
    thread = _training(alike[0]) if alike[0].standing == "answered" else None
    if thread is None:
        return Group(tuple(alike))
    return Group(tuple(alike), tuple(thread.frames), thread.theirs)


def _training(entry: RankStacks) -> ThreadStack | None:
    return next((thread for thread in entry.threads if thread.training), None)
