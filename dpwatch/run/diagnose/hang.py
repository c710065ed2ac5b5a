"""`hang`: nothing moves, and which rank holds the run up.

Rule: a rank has entered no collective and completed no step for 3 s and 4 median steps (10 s
before the first steps), and either it waits for a rank that has not entered the same call, or it is
stuck at one line of Python; or ranks have been creating a process group for 12 s (8 s if they
can't meet). The finding names the ranks that wait for nobody, or have not arrived. Its severity
depends on what they do and for how long (see `doing`), compared with earlier pauses of the run.
Once a rank has given up waiting it is critical, and names whom that rank had waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpwatch.quantiles import median
from dpwatch.run.derive.doing import Doing, doing, severity
from dpwatch.run.derive.wait_graph import (
    Call,
    Standstill,
    distinct,
    given_up,
    given_up_ns,
    standstill,
)
from dpwatch.run.diagnose import desync
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.diagnose.meeting import meeting
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import SEVERITIES, Run
from dpwatch.run.state.endings import BY_ITSELF, FINISHED, ending
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Beat, Position

LEAST_NS = 3_000_000_000
LEAST_STEPS = 4
STARTING_NS = 10_000_000_000

ALONE_CRITICAL_S = 15.0
"""Being stuck while nobody waits is critical only after this long: it may be one long call."""

LARGEST_ERROR_NS = 500_000_000
"""With a larger error between hosts' clocks, seconds can't be compared."""

STARTED = 3
"""Steps before the median step tells what is long."""

TOLD = 4
"""At most this many ranks get a sentence each."""


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on heartbeats: which ranks have entered which call, and where the others are."""
    if run.state == "finished" or not _compare(state):
        return None
    if (meets := meeting(run, state)) is not None:
        return None if desync.rule(run, state) is not None else meets
    broke_ns = given_up_ns(state)
    found = standstill(state, _patience_ns(run)) if broke_ns is None else given_up(state)
    if found is None or desync.rule(run, state) is not None:  # which is then the cause
        return None
    each = {rank: doing(state, rank) for rank in found.roots}
    stuck_s = ((broke_ns or state.now_ns) - found.since_ns) / 1e9
    if not found.waiting:
        return _alone(run, state, found, each, stuck_s)
    if all(_ended_by_itself(state, rank) for rank in found.roots):
        return None  # reported by `rank_lost`
    unseen = any(told.what == "unseen" for told in each.values())
    if state.joined and state.joined.role != "head" and unseen:
        return None  # they are on other hosts, and only the head knows their state
    return _waited_for(state, found, each, stuck_s, broken=broke_ns is not None)


def _compare(state: RunState) -> bool:
    """Whether ranks' clocks compare well enough to tell who has been stuck for seconds."""
    error_ns = state.clock_error_ns(rank.host for rank in state.ranks.values())
    return error_ns is not None and error_ns <= LARGEST_ERROR_NS


def _patience_ns(run: Run) -> float:
    if run.steps < STARTED:
        return STARTING_NS
    step_ms = median(row.step_ms.p50 for row in run.ranks) or 0.0
    return max(LEAST_NS, LEAST_STEPS * step_ms * 1e6)


def _ended_by_itself(state: RunState, r: int) -> bool:
    rank = state.ranks.get(r)
    return rank is not None and ending(rank) in BY_ITSELF


def _waited_for(
    state: RunState, found: Standstill, each: dict[int, Doing], stuck_s: float, *, broken: bool
) -> Finding:
    call = _crowded(found)
    position = call.position
    if found.circle:
        said = (
            f"{name_ranks(found.roots).capitalize()} wait for each other in different collectives, "
            f"{_each_waits(found)}: a deadlock. Call them in the same order on all ranks."
        )
    else:
        said = f"{_named(state, found, each, call, stuck_s)} {_sentences(each)}"
    worst = max((severity(state, told, stuck_s) for told in each.values()), key=SEVERITIES.index)
    return Finding(
        kind="hang",
        severity="critical" if broken or found.circle else worst,
        ranks=list(found.roots),
        text=said.strip(),
        evidence={
            "pattern": "deadlock" if found.circle else "missing",
            "group": position.group,
            "seq": position.seq,
            "op": position.op,
            "missing": list(call.missing),
            "entered": list(call.entered),
            "stuck_s": stuck_s,
            "doing": {str(rank): told.what for rank, told in each.items()},
            **_places(state),
        },
        began=position.step,
    )


def _named(
    state: RunState, found: Standstill, each: dict[int, Doing], call: Call, stuck_s: float
) -> str:
    """Which ranks have not entered which call, and how long others have waited there."""
    position = call.position
    where = f" at {position.where}" if position.where else ""
    what = f"{position.op}{where} (group {position.group}, call {position.seq})"
    waiters = sorted(found.waiting)
    one = len(found.roots) == 1
    it, have = ("it", "has") if one else ("they", "have")
    if {told.what for told in each.values()} == {FINISHED}:
        return (
            f"{name_ranks(found.roots).capitalize()} {have} finished{_after(state, found.roots)} "
            f"while the others go on. {name_ranks(call.entered).capitalize()} called {what}, "
            f"which {it} never entered."
        )
    waited = f"{'has' if len(waiters) == 1 else 'have'} waited there for {stuck_s:.0f} s"
    return (
        f"{name_ranks(found.roots).capitalize()} {have} not entered {what}; "
        f"{name_ranks(waiters)} {waited}."
    )


def _after(state: RunState, ranks: Sequence[int]) -> str:
    """After how many steps ranks ended, if it is the same for all."""
    done = {state.ranks[r].steps_done for r in ranks}
    steps = max(done) if len(done) == 1 else 0
    return f" after {steps} step{'s' * (steps > 1)}" if steps else ""


def _sentences(each: dict[int, Doing]) -> str:
    """What the first ranks do, and the advice, each only once."""
    some = list(each.values())[:TOLD]
    told = [one.text for one in some if one.what != FINISHED]
    advice = list(dict.fromkeys(one.advice for one in some if one.advice))
    return " ".join((*told, *advice))


def _crowded(found: Standstill) -> Call:
    """The call in which most ranks wait for a root of the wait graph."""
    roots = set(found.roots)
    calls = distinct(found.waiting)
    direct = [c for c in calls if roots & set(c.missing)]
    return max(direct or calls, key=lambda c: (len(c.entered), -c.position.seq))


def _each_waits(found: Standstill) -> str:
    calls = {r: found.waiting[r].position for r in found.roots[:TOLD]}
    return ", ".join(f"rank {r} in {p.op} of {p.group}" for r, p in calls.items())


def _alone(
    run: Run, state: RunState, found: Standstill, each: dict[int, Doing], stuck_s: float
) -> Finding | None:
    """Ranks that are stuck outside any collective."""
    moved = [rank for rank, told in each.items() if told.what not in ("still", "silent")]
    running = [rank for rank, who in state.ranks.items() if who.bye is None]
    if moved or run.steps < STARTED or len(found.roots) < len(running):
        return None
    first = state.ranks[found.roots[0]].beat
    position = first.positions[0] if first and first.positions else None
    entered = first is not None and len(running) > 1 and _stands_in(first, position)
    if not entered and stuck_s < max(told.limit_s for told in each.values()):
        return None  # nobody waits for them, and it may pass
    why = ""
    if entered and position is not None:
        why = (
            f" All ranks have entered {position.op} (group {position.group}, call {position.seq}) "
            "and none has left it: either it does not complete (network, or ranks called it with "
            "different shapes), or they wait elsewhere."
        )
    some = dict(list(each.items())[:2])
    worst = max((severity(state, told, stuck_s) for told in each.values()), key=SEVERITIES.index)
    return Finding(
        kind="hang",
        severity=worst
        if stuck_s >= ALONE_CRITICAL_S
        else min(worst, "warning", key=SEVERITIES.index),
        ranks=list(found.roots),
        text=f"Nothing has moved for {stuck_s:.0f} s. {_sentences(some)}{why}".strip(),
        evidence={
            "pattern": "all_entered" if entered else "still",
            "group": position.group if position else None,
            "seq": position.seq if position else None,
            "op": position.op if position else None,
            "missing": [],
            "entered": list(found.roots) if entered else [],
            "stuck_s": stuck_s,
            "doing": {str(rank): told.what for rank, told in each.items()},
            **_places(state),
        },
    )


def _stands_in(beat: Beat, position: Position | None) -> bool:
    """Whether a rank's thread is in the call that it entered last, rather than elsewhere.

    The end of a call issued by C++ may be unknown.
    """
    if position is None or position.done or beat.phase == "data" or beat.inside:
        return False
    line = beat.where.partition(" ")[0]
    return bool(beat.phase) or not (line and position.where) or line == position.where


def _places(state: RunState) -> dict[str, Any]:
    """Each rank's line of Python, what it waits in there, and stacks of those that are stuck."""
    beats = {r: rank.beat for r, rank in state.ranks.items() if rank.beat}
    waits = {str(r): beat.waits_on or beat.waits_in for r, beat in beats.items() if beat.waits_in}
    return {
        "waits": waits,
        "where": {str(r): beat.where or None for r, beat in beats.items()},
        "stacks": {str(r): beat.stack for r, beat in list(beats.items())[:8] if beat.stack},
    }
