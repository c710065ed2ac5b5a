"""Ranks' Python stacks: what the hub keeps of them, and what people see.

A rank's last answer stays until the next one. All ranks' together have a budget, of which each has
its share: where there are many ranks, threads that do not train are let go first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from dpwatch.wire.messages import Asked, Stacks, ThreadStack, Unanswered

if TYPE_CHECKING:
    from dpwatch.hub.parts import RankState
    from dpwatch.hub.state import RunState

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

_PROCESS = {
    "T": "its process is stopped (SIGSTOP or SIGTSTP); SIGCONT lets it go on",
    "t": "a debugger has stopped its process",
    "D": "its process is in the kernel and can't be interrupted: disk, network file system, driver",
    "R": "its process runs, but no other Python thread gets to: native code holds the GIL, "
    "or there is no free core",
    "S": "its process sleeps and no other Python thread gets to run: native code holds the GIL",
    "": "it is stopped, or native code holds the GIL",
}


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


def hear(state: RunState, record: Asked | Unanswered, now_ns: int) -> None:
    """Takes in what the hub says of stacks."""
    if isinstance(record, Unanswered):
        rank = state.ranks.get(record.rank)
        if rank is not None and rank.pid == record.pid and rank.dump.awaited:
            rank.dump.process = record.process
        return
    for number in record.ranks or state.ranks:
        if (rank := state.ranks.get(number)) is not None and rank.bye is None:
            rank.dump.ask(record.number, now_ns)


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


class RankStacks(msgspec.Struct, frozen=True):
    """A rank's stacks for people.

    Attributes:
        asked: Number of the latest request that went to it, 0 for none.
        answered: Number of the one that `threads` answer, 0 for none.
        standing: `answered`, `awaited`, `silent` (it should have answered by now), `ended`,
            `unasked`.
        why: Why there is no (newer) answer, or none of the training thread; else "".
        waited_s: How long it has not answered, None while nothing is awaited.
        age_s: How old the stacks are, None without any.
        threads: The training thread first; frames outermost first.
        left_out: Threads beyond those.
        seen_at: `file:line function` its last heartbeat told …
        seen_s: … and how long ago that was, None where none did.
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
    """Ranks whose training threads stand at the same stack, or that lack one for the same reason.

    Attributes:
        entries: The ranks.
        frames: Their common stack, outermost first; none if they have not answered.
        theirs: Index of the innermost frame that is the user's.
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
        """Where they stand, in a line: the user's innermost frame, else the innermost."""
        if not self.frames:
            return ""
        return self.frames[-1 if self.theirs is None else self.theirs]


def seen(state: RunState) -> tuple[RankStacks, ...]:
    """Every rank's stacks, none at all before anybody has asked."""
    if not any(rank.dump.asked for rank in state.ranks.values()):
        return ()
    return tuple(_seen(rank, state.now_ns) for rank in state.ranks.values())


def _seen(rank: RankState, now_ns: int) -> RankStacks:
    dump, answer, beat = rank.dump, rank.dump.stacks, rank.beat
    waited_ns = max(0, now_ns - dump.asked_ns)
    standing = _standing(rank, waited_ns)
    return RankStacks(
        rank=rank.rank,
        host=rank.host,
        pid=rank.pid,
        asked=dump.asked,
        answered=answer.asked if answer else 0,
        standing=standing,
        why=_why(rank, standing, waited_ns / 1e9),
        waited_s=waited_ns / 1e9 if standing in ("awaited", "silent") else None,
        age_s=max(0, now_ns - answer.taken_ns) / 1e9 if answer else None,
        threads=tuple(answer.threads) if answer else (),
        left_out=answer.left_out if answer else 0,
        seen_at=beat.where if beat else "",
        seen_s=max(0, now_ns - rank.seen_ns) / 1e9 if beat else None,
    )


def _standing(rank: RankState, waited_ns: int) -> str:
    dump = rank.dump
    if rank.bye is not None:
        return "ended"
    if not dump.awaited:
        return "answered" if dump.stacks else "unasked"
    told = dump.process in STOPPED or (dump.process is not None and waited_ns >= PATIENCE_NS)
    return "silent" if told else "awaited"


def _why(rank: RankState, standing: str, waited_s: float) -> str:
    if standing == "silent":
        known = _PROCESS.get(rank.dump.process or "", _PROCESS[""])
        return f"no answer for {waited_s:.0f} s: {known}"
    answer = rank.dump.stacks
    if standing == "answered" and answer and not any(t.training for t in answer.threads):
        return "its training thread has ended"
    if standing == "ended":
        return f"its process has ended ({rank.bye.state if rank.bye else ''})"
    return {"awaited": "asked, no answer yet", "unasked": "not asked yet"}.get(standing, "")


def groups(entries: Iterable[RankStacks]) -> list[Group]:
    """The ranks by where their training threads stand, in the order of each group's first rank."""
    found: dict[object, list[RankStacks]] = {}
    for entry in entries:
        thread = _training(entry)
        key: object = (entry.standing, entry.why)
        if entry.standing == "answered" and thread is not None:
            key = tuple(thread.frames)
        elif entry.standing == "silent":
            key = ("silent", entry.why.partition(": ")[2])  # whatever each one's time
        found.setdefault(key, []).append(entry)
    return [_group(alike) for alike in found.values()]


def _group(alike: Sequence[RankStacks]) -> Group:
    thread = _training(alike[0]) if alike[0].standing == "answered" else None
    if thread is None:
        return Group(tuple(alike))
    return Group(tuple(alike), tuple(thread.frames), thread.theirs)


def _training(entry: RankStacks) -> ThreadStack | None:
    return next((thread for thread in entry.threads if thread.training), None)


def spans(ranks: Iterable[int]) -> str:
    """`rank 7`, `ranks 0-6, 9`."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    text = ", ".join("-".join(map(str, part)) for part in parts)
    many = len(parts) > 1 or any(len(part) > 1 for part in parts)
    return f"{'ranks' if many else 'rank'} {text}"
