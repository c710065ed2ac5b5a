"""`hang`: the run stands still, and this is the rank that holds it up.

Rule: a rank has entered no collective and ended no step for 3 s and 4 median steps (10 s before the
first steps are done), and either it waits for a rank that has not entered the same call, or it
stands still at one line of Python. Named are the ranks that wait for nobody. While such a rank
runs Python (a checkpoint, an endless loop) it is a warning; still, stopped or silent, critical.
So it is where the ranks waited for are on a host that is not heard of any more.
"""

from __future__ import annotations

from typing import Any

from dpwatch.hub.diagnose import desync
from dpwatch.hub.diagnose.finding import Finding, ranks_of
from dpwatch.hub.series import median
from dpwatch.hub.snapshot import Run
from dpwatch.hub.state import RunState
from dpwatch.hub.stuck import Call, Standstill, distinct, is_silent, is_stale, standstill

LEAST_NS = 3_000_000_000
LEAST_STEPS = 4
STARTING_NS = 10_000_000_000
STILL_NS = 2_000_000_000
"""A thread at the same line for so long stands still."""

ALONE_CRITICAL_NS = 15_000_000_000
"""Standing still where nobody waits is critical only after so long: it may be one long call."""

LARGEST_ERROR_NS = 500_000_000
"""Clocks of several hosts that may be further off say nothing of seconds."""

STARTED = 3
"""Steps from which on the median step says what is long."""


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on heartbeats: who has entered which call, who has not, and where they stand."""
    if run.state in ("finished", "failed") or not _compare(state):
        return None
    found = standstill(state, _patience_ns(run))
    if found is None or desync.rule(run, state) is not None:  # which then is why
        return None
    doing = {rank: _doing(state, rank) for rank in found.roots}
    if found.waiting:
        if set(doing.values()) <= {"failed", "lost"}:
            return None  # `rank_lost` says it
        if state.joined and state.joined.role != "head" and "unseen" in doing.values():
            return None  # they are on other hosts, and only the head knows how they do
        return _waited_for(state, found, doing)
    return _alone(run, state, found, doing)


def _compare(state: RunState) -> bool:
    """Whether ranks' times compare well enough to say who has stood still for seconds."""
    error_ns = state.clock_error_ns(rank.host for rank in state.ranks.values())
    return error_ns is not None and error_ns <= LARGEST_ERROR_NS


def _patience_ns(run: Run) -> float:
    if run.steps < STARTED:
        return STARTING_NS
    step_ms = median(row.step_ms.p50 for row in run.ranks) or 0.0
    return max(LEAST_NS, LEAST_STEPS * step_ms * 1e6)


def _doing(state: RunState, rank: int) -> str:
    """What a rank is seen to do: `silent`, `still`, `busy`, `unseen`, `stale`, or how it ended."""
    who = state.ranks.get(rank)
    if who is None or (who.beat is None and who.bye is None):
        return "unseen"
    if who.bye is not None:
        return who.bye.state
    if is_stale(state, who):
        return "stale"
    if is_silent(state, who):
        return "silent"
    return "still" if who.beat and (who.beat.still_ns or 0) >= STILL_NS else "busy"


def _waited_for(state: RunState, found: Standstill, doing: dict[int, str]) -> Finding:
    call = _crowded(found)
    position = call.position
    stuck_ns = state.now_ns - found.since_ns
    waiters = sorted(found.waiting)
    where = f" at {position.where}" if position.where else ""
    what = f"{position.op}{where} (group {position.group}, call {position.seq})"
    if found.circle:
        said = (
            f"{ranks_of(found.roots)} wait for each other in different collectives, "
            f"{_each_waits(found)}: a deadlock. Let all ranks call them in the same order"
        )
    else:
        one = len(found.roots) == 1
        told = " ".join(_told(state, rank, doing[rank]) for rank in found.roots[:4])
        said = (
            f"{ranks_of(found.roots)} {'has' if one else 'have'} not entered {what}; "
            f"{ranks_of(waiters, start=False)} {'has' if len(waiters) == 1 else 'have'} waited "
            f"there for {stuck_ns / 1e9:.0f} s. {told}"
        )
    calm = set(doing.values()) == {"busy"} and not found.circle
    return Finding(
        kind="hang",
        severity="warning" if calm else "critical",
        ranks=list(found.roots),
        text=f"{said.rstrip('.')}.",
        evidence={
            "pattern": "deadlock" if found.circle else "missing",
            "group": position.group,
            "seq": position.seq,
            "op": position.op,
            "missing": list(call.missing),
            "entered": list(call.entered),
            "stuck_s": stuck_ns / 1e9,
            "doing": {str(rank): told for rank, told in doing.items()},
            **_places(state),
        },
        began=position.step,
    )


def _crowded(found: Standstill) -> Call:
    """The call that most ranks wait in for a root."""
    roots = set(found.roots)
    calls = distinct(found.waiting)
    direct = [c for c in calls if roots & set(c.missing)]
    return max(direct or calls, key=lambda c: (len(c.entered), -c.position.seq))


def _each_waits(found: Standstill) -> str:
    calls = {r: found.waiting[r].position for r in found.roots[:4]}
    return ", ".join(f"rank {r} in {p.op} of {p.group}" for r, p in calls.items())


def _told(state: RunState, rank: int, doing: str) -> str:
    """A sentence on what a root does and what to do about it."""
    who = state.ranks.get(rank)
    if who is None:
        return f"Nothing has been heard of rank {rank}."
    place = f" at {who.beat.where}" if who.beat and who.beat.where else ""
    quiet_s = (state.now_ns - who.seen_ns) / 1e9
    match doing:
        case "stale":
            return (
                f"Rank {rank} is on {who.host}, of which nothing has been heard for "
                f"{quiet_s:.0f} s: the host is down, or the network between."
            )
        case "silent":
            return (
                f"Rank {rank} (pid {who.pid}) has been silent for {quiet_s:.0f} s: stopped, "
                f"swapped out, or a call that holds its interpreter; last seen{place or ' alive'}."
            )
        case "still":
            return f"Rank {rank} (pid {who.pid}) stands still{place}."
        case "busy":
            return f"Rank {rank} (pid {who.pid}) is busy{place}."
    return f"Rank {rank} has {doing}: it has done fewer steps or calls than the others."


def _alone(run: Run, state: RunState, found: Standstill, doing: dict[int, str]) -> Finding | None:
    """Ranks that have not moved though no collective holds them."""
    moved = [rank for rank, told in doing.items() if told not in ("still", "silent")]
    running = [rank for rank, who in state.ranks.items() if who.bye is None]
    if moved or run.steps < STARTED or len(found.roots) < len(running):
        return None
    stuck_ns = state.now_ns - found.since_ns
    first = state.ranks[found.roots[0]]
    position = first.beat.positions[0] if first.beat and first.beat.positions else None
    entered = position is not None and not position.done and len(running) > 1
    phase = first.beat.phase if first.beat else ""
    if entered and position is not None and phase != "data":
        why = (
            f"All ranks have entered {position.op} (group {position.group}, call {position.seq}) "
            "and none goes on, so either it does not complete (network, or ranks called it with "
            "different shapes) or they wait elsewhere."
        )
    elif phase == "data":
        why = "They wait for data: look at the data loader's workers and its storage."
    else:
        why = ""
    told = " ".join(_told(state, rank, doing[rank]) for rank in found.roots[:2])
    return Finding(
        kind="hang",
        severity="critical" if stuck_ns >= ALONE_CRITICAL_NS else "warning",
        ranks=list(found.roots),
        text=f"Nothing has moved for {stuck_ns / 1e9:.0f} s. {told} {why}".strip(),
        evidence={
            "pattern": "all_entered" if entered else "still",
            "group": position.group if position else None,
            "seq": position.seq if position else None,
            "op": position.op if position else None,
            "missing": [],
            "entered": list(found.roots) if entered else [],
            "stuck_s": stuck_ns / 1e9,
            "doing": {str(rank): what for rank, what in doing.items()},
            **_places(state),
        },
    )


def _places(state: RunState) -> dict[str, Any]:
    """Each rank's line of Python, and the stacks of those that stand still."""
    beats = {r: rank.beat for r, rank in state.ranks.items() if rank.beat and not rank.bye}
    return {
        "where": {str(r): beat.where or None for r, beat in beats.items()},
        "stacks": {str(r): beat.stack for r, beat in list(beats.items())[:8] if beat.stack},
    }
