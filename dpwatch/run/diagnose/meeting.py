"""Ranks that create a process group and wait for others; findings of `hang`."""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.run.derive.doing import STARTING_LIMIT_S, doing
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.endings import BY_ITSELF, GAVE_UP, ending
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Meeting

SURE_NS = 8_000_000_000
"""Waiting this long is reported if ranks ask for different worlds, and so can't meet."""

PATIENCE_S = 12.0
"""Otherwise it is reported from here on as a note: ranks start at different speeds, …"""

WARNING_S = 30.0
"""… and from here on as a warning."""

WORLD = "init_process_group"
TOLD = 3


def meeting(run: Run, state: RunState) -> Finding | None:
    """Fires on ranks that wait in `init_process_group` or `new_group`, or gave up there."""
    there = {r: found for r, rank in state.ranks.items() if (found := _meets(rank)) is not None}
    stuck = {r: found for r, found in there.items() if _is_stuck(state.ranks[r])}
    if not stuck:
        return None
    first = next(iter(stuck.values()))
    together = {r: found for r, found in there.items() if _is_same(found, first)}
    expected = max(found.ranks for found in together.values())
    wanted = first.members or range(expected)
    absent = [r for r in wanted if r not in together and not _has_come(state, r, first)]
    if all(_ended_by_itself(state, r) for r in absent) and absent:
        return None  # reported by `rank_lost`
    unseen = [r for r in absent if r not in state.ranks]
    if unseen and state.joined is not None and state.joined.role != "head":
        return None  # they may be on other hosts, and only the head knows
    return _finding(state, together, stuck, absent, expected)


def _meets(rank: RankState) -> Meeting | None:
    beat = rank.beat
    running = rank.bye is None or ending(rank) == GAVE_UP
    return beat.meeting if beat is not None and running else None


def _is_stuck(rank: RankState) -> bool:
    still_ns = rank.beat.still_ns if rank.beat else None
    return ending(rank) == GAVE_UP or (still_ns or 0) >= SURE_NS


def _is_same(one: Meeting, other: Meeting) -> bool:
    return one.call == other.call and (one.call == WORLD or one.group == other.group)


def _has_come(state: RunState, r: int, where: Meeting) -> bool:
    """Whether a rank that is not there has been there before."""
    rank = state.ranks.get(r)
    hello = None if rank is None else rank.hello
    if hello is None:
        return False
    if where.call == WORLD:
        return bool(hello.backend)
    return any(group.group == where.group for group in hello.groups)


def _ended_by_itself(state: RunState, r: int) -> bool:
    rank = state.ranks.get(r)
    return rank is not None and ending(rank) in BY_ITSELF


def _finding(
    state: RunState,
    together: dict[int, Meeting],
    stuck: dict[int, Meeting],
    absent: Sequence[int],
    expected: int,
) -> Finding | None:
    first = next(iter(stuck))
    where = stuck[first]
    waited_s = max(_still_s(state.ranks[r]) for r in stuck)
    gave_up = any(ending(state.ranks[r]) == GAVE_UP for r in stuck)
    disagreed = len({found.ranks for found in together.values()}) > 1
    misled = any(m.launched not in (None, m.ranks) for m in together.values())
    sure = gave_up or disagreed or misled or waited_s >= STARTING_LIMIT_S
    if not sure and waited_s < PATIENCE_S:
        return None
    at = next((beat.where for r in stuck if (beat := state.ranks[r].beat) and beat.where), "")
    came = sorted(together)
    what = f"{where.call}{f' at {at}' if at else ''}"
    one = len(stuck) == 1
    waiting = (
        f"{name_ranks(sorted(stuck))} {'has' if one else 'have'} waited there for {waited_s:.0f} s"
    )
    if absent:
        have = "has" if len(absent) == 1 else "have"
        there = f"{expected - len(absent)} of {expected} ranks are there"
        said = f"{name_ranks(absent).capitalize()} {have} not reached {what}; {waiting} ({there})."
    else:
        said = f"All {expected} ranks are in {what}; {waiting}."
    return Finding(
        kind="hang",
        severity="critical" if sure else "warning" if waited_s >= WARNING_S else "info",
        ranks=list(absent) or came,
        text=f"{said} {_why(state, together, absent, expected)}",
        evidence={
            "pattern": "meeting",
            "group": where.group or None,
            "seq": None,
            "op": where.call,
            "missing": list(absent),
            "entered": came,
            "expected": {str(r): found.ranks for r, found in together.items()},
            "launched": next((m.launched for m in together.values() if m.launched), None),
            "stuck_s": waited_s,
            "doing": {str(r): doing(state, r).what for r in absent},
            "where": {str(r): b.where or None for r, k in state.ranks.items() if (b := k.beat)},
        },
        began=0 if where.call == WORLD else None,
    )


def _still_s(rank: RankState) -> float:
    return ((rank.beat.still_ns if rank.beat else None) or 0) / 1e9


def _why(
    state: RunState, together: dict[int, Meeting], absent: Sequence[int], expected: int
) -> str:
    """Which ranks are missing, what they do, and what to do about it."""
    sizes = sorted({found.ranks for found in together.values()})
    if len(sizes) > 1:
        said = ", ".join(
            f"{name_ranks([r for r, m in together.items() if m.ranks == size])} {size}"
            for size in sizes
        )
        return f"They disagree about the world size: {said}. Give all the same world_size."
    unseen = [r for r in absent if r not in state.ranks]
    told = []
    if unseen:
        have = "has" if len(unseen) == 1 else "have"
        told.append(f"{name_ranks(unseen).capitalize()} {have} not reported.")
    told += [doing(state, r).text for r in absent if r in state.ranks][:TOLD]
    launched = next((m.launched for m in together.values() if m.launched), None)
    if launched is not None and launched != expected:
        told.append(
            f"The script asks for {expected} ranks, the launcher has started {launched} "
            "(WORLD_SIZE): take world_size from the environment, or start as many."
        )
    elif unseen:
        told.append(
            "Unless they are still starting, check that these processes were started, on the right "
            "hosts (MASTER_ADDR, MASTER_PORT and RANK of each)."
        )
    elif not absent:
        told.append(
            "None goes on: check the network between them (interface, firewall), and that all use "
            "the same backend and address."
        )
    return " ".join(told)
