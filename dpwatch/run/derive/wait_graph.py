"""Finds which ranks a stalled run waits for, from each rank's position in its groups.

A rank waits if it has entered a collective that another member of the group has not: an edge from
the one to the other. Following the edges leads to ranks that wait for nobody, which block the run,
or to a cycle, which is a deadlock.

Positions come from heartbeats, which the probe's own thread sends even while a rank is stuck. A
rank without heartbeats counts as blocking the ranks that wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from dpwatch.run.state.endings import FINISHED, GAVE_UP, MAYBE_GAVE_UP, ending, ends
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Position, Unfinished

SILENT_NS = 2_000_000_000
"""Ranks send two heartbeats per second; one without any for this long is silent."""

LARGE_RUN_RANKS, LARGE_RUN_SILENT_NS = 512, 3_000_000_000
"""The same limit for runs of more ranks than this, which send one heartbeat per second."""

MOST_POSITIONS = 16
"""A heartbeat with this many groups may leave out others."""

SURE_NS = 1_000_000_000
"""A rank still heard from this long after others entered a call had time to enter it too."""

_GIVING_UP = (GAVE_UP, *MAYBE_GAVE_UP)

WORLD = "default"

CallKey = tuple[str, int, int, int, tuple[int, ...]]
"""Identifies a call: group, generation, sequence number, number of ranks, members."""


class Call(msgspec.Struct, frozen=True):
    """A collective that some ranks of a group have entered and some have not.

    Attributes:
        entered: Ranks known to have entered it.
        missing: Ranks that have not.
    """

    position: Position
    entered: tuple[int, ...]
    missing: tuple[int, ...]


class Standstill(msgspec.Struct, frozen=True):
    """Why a run makes no progress.

    Attributes:
        since_ns: When the last of the waiting ranks made progress.
        roots: Ranks that the others wait for, directly or not.
        waiting: By rank, the call it waits in.
        circle: Whether the roots wait for each other.
    """

    since_ns: int
    roots: tuple[int, ...]
    waiting: dict[int, Call]
    circle: bool = False


def moved_ns(rank: RankState) -> int | None:
    """When a rank last ended a step or entered a collective; None if never."""
    entered = rank.beat.positions[0].issued_ns if rank.beat and rank.beat.positions else 0
    return max(rank.progress_ns, entered) or None


def is_silent(state: RunState, rank: RankState) -> bool:
    """Whether a rank's heartbeats have stopped although it has not ended."""
    most_ns = SILENT_NS if state.world_size <= LARGE_RUN_RANKS else LARGE_RUN_SILENT_NS
    return rank.bye is None and state.now_ns - rank.seen_ns >= most_ns


def is_stale(state: RunState, rank: RankState) -> bool:
    """Whether a rank's host is silent; the rank may be fine and only the hubs disconnected."""
    return rank.host in state.others and state.others[rank.host].silent


def standstill(state: RunState, patience_ns: float) -> Standstill | None:
    """Why the run makes no progress, if a rank has made none for `patience_ns`.

    Returns:
        None while all ranks make progress. Without `waiting`, the roots are stuck by themselves.
    """
    moved = {r: at for r, rank in state.ranks.items() if not rank.bye and (at := moved_ns(rank))}
    held = [
        r
        for r, at in moved.items()
        if state.now_ns - at >= patience_ns and not is_stale(state, state.ranks[r])
    ]
    if not held:
        return None
    calls: dict[CallKey, Call] = {}  # shared by all ranks that wait in one call
    waiting = {r: call for r in held if (call := _waits_in(state, r, calls)) is not None}
    if not waiting:
        return Standstill(max(moved[r] for r in held), tuple(held), {})
    roots, circle = _ends(waiting)
    return Standstill(max(moved[r] for r in waiting), roots, waiting, circle)


def given_up(state: RunState) -> Standstill | None:
    """Which ranks those that gave up had waited for, as far as that is certain.

    The ranks that gave up reported their positions last. Other ranks' heartbeats may be half a
    second older, so a rank that may not have had time to enter a call is not named.

    Returns:
        None if no rank gave up, or no rank can be named.
    """
    ended = {r: rank for r, rank in state.ranks.items() if ending(rank) in _GIVING_UP}
    calls: dict[CallKey, Call] = {}
    waiting = {r: call for r in ended if (call := _waits_in(state, r, calls)) is not None}
    if not waiting:
        return None
    roots, circle = _ends(waiting)
    sure = any(ending(rank) == GAVE_UP for rank in ended.values())
    if not sure:  # a rank that quit need not have waited, unless for one that finished
        finished = (r for r in roots if r in state.ranks and ending(state.ranks[r]) == FINISHED)
        roots, circle = tuple(finished), False
    elif not circle:
        last_ns = max(call.position.issued_ns for call in waiting.values())
        roots = tuple(r for r in roots if _had_time_to_enter(state, r, last_ns))
    since_ns = max(moved_ns(ended[r]) or 0 for r in waiting)
    return Standstill(since_ns, roots, waiting, circle) if roots else None


def _had_time_to_enter(state: RunState, r: int, issued_ns: int) -> bool:
    rank = state.ranks.get(r)
    if rank is None:
        return (given_up_ns(state) or 0) - issued_ns >= SURE_NS
    if ending(rank) == FINISHED:
        return True
    return (rank.ended_ns or rank.seen_ns) - issued_ns >= SURE_NS


def given_up_ns(state: RunState) -> int | None:
    """When the first rank gave up waiting, or may have; None if none has."""
    gave_up = [rank for rank, how in ends(state.ranks.values()) if how in _GIVING_UP]
    return min((rank.ended_ns for rank in gave_up), default=None)


def distinct(waiting: dict[int, Call]) -> list[Call]:
    """The distinct calls that ranks wait in."""
    return list({id(call): call for call in waiting.values()}.values())


def _waits_in(state: RunState, r: int, calls: dict[CallKey, Call]) -> Call | None:
    """The first call in which a rank waits for others, None if there is none."""
    rank = state.ranks[r]
    if rank.beat is None or is_silent(state, rank):
        return None
    gave_up = ending(rank) in _GIVING_UP
    for nth, place in enumerate(rank.beat.positions):
        for position in under_way(place, failed=gave_up and not nth):
            key = (position.group, position.generation, position.seq, position.ranks,
                   tuple(position.members))  # fmt: skip
            if (call := calls.get(key)) is None:
                call = calls[key] = _call(state, position)
            if call.missing:
                return call
    return None


def under_way(position: Position, *, failed: bool = False) -> Iterator[Position]:
    """Yields a group's known calls in flight: the oldest and the newest.

    The newest one of a rank that `failed` counts although it is done: the rank waited in it.
    """
    if position.oldest is not None:
        yield oldest_of(position, position.oldest)
    if failed or not position.done:
        yield position


def oldest_of(position: Position, oldest: Unfinished) -> Position:
    """The position of a group's oldest call in flight, given that of its newest."""
    return Position(
        position.group, position.ranks, oldest.seq, oldest.op, oldest.nbytes, oldest.dtype,
        oldest.issued_ns, oldest.step, False, oldest.where, position.members, position.generation,
    )  # fmt: skip


def _call(state: RunState, position: Position) -> Call:
    entered: list[int] = []
    missing: list[int] = []
    for member in _members(state, position):
        (entered if _entered(state.ranks.get(member), position) else missing).append(member)
    return Call(position, tuple(entered), tuple(missing))


def _members(state: RunState, position: Position) -> Iterable[int]:
    """Known ranks of the group."""
    if position.members:
        return position.members
    if position.group == WORLD:
        return range(position.ranks)
    return [r for r, rank in state.ranks.items() if _place(rank, position.group) is not None]


def _entered(rank: RankState | None, position: Position) -> bool:
    if rank is None or rank.beat is None:
        return False
    place = _place(rank, position.group)
    if place is None:
        return len(rank.beat.positions) >= MOST_POSITIONS  # this group may have been left out
    return (place.generation, place.seq) >= (position.generation, position.seq)


def _place(rank: RankState, group: str) -> Position | None:
    positions = rank.beat.positions if rank.beat else []
    return next((p for p in positions if p.group == group), None)


def _ends(waiting: dict[int, Call]) -> tuple[tuple[int, ...], bool]:
    """The ranks that the waiting ones lead to, and whether they form a cycle."""
    reached = {m for call in distinct(waiting) for m in call.missing}
    ends = reached - waiting.keys()
    if ends:
        return tuple(sorted(ends)), False
    # No edge leads out of the waiting ranks: drop those that nobody in the set waits for.
    circle = set(waiting)
    while (inner := {m for r in circle for m in waiting[r].missing} & circle) != circle:
        circle = inner
    return tuple(sorted(circle)), True
