"""Ranks that are out of step although their calls are alike; findings of `desync`."""

from __future__ import annotations

from collections import Counter

from dpwatch.run.derive.doing import STILL_NS
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.state.endings import ABORTED, GAVE_UP, ending
from dpwatch.run.state.run_state import RunState

PASSED_STEPS = 2
"""All ranks have to be this many steps past an abandoned pass: they may all have abandoned it, and
not all have reported it yet.
"""


def skipped(state: RunState) -> Finding | None:
    """A rank abandoned a pass in which others called collectives, and went on with the next one."""
    beats = {r: rank.beat for r, rank in state.ranks.items() if rank.beat is not None}
    counts = {r: beat.abandoned for r, beat in beats.items()}
    if not any(counts.values()) or len(counts) < 2:
        return None
    most = (
        Counter(counts.values()).most_common(1)[0][0] if len(counts) > 2 else min(counts.values())
    )
    astray = sorted(r for r, count in counts.items() if count > most)
    if not astray or not state.ops:
        return None
    first = beats[min(astray, key=lambda r: beats[r].abandoned_step or 0)]
    step = first.abandoned_step or 0
    if min(rank.steps_done for rank in state.ranks.values()) < step + PASSED_STEPS:
        return None
    group = next(iter(state.ops.values())).group
    ahead = counts[astray[0]] - most
    passes = "a pass" if ahead == 1 else f"{ahead} passes"
    why = f" ({first.abandoned_why})" if first.abandoned_why else ""
    one = len(astray) == 1
    text = (
        f"{name_ranks(astray).capitalize()} abandoned {passes} that the others completed, "
        f"in step {step}{why}, and went on. Since then {'its' if one else 'their'} calls meet the "
        "others' calls of an earlier batch: gradients of different batches are mixed, and in the "
        "end calls are missing. Skip a batch on all ranks (all-reduce a flag first), or on none."
    )
    return Finding(
        kind="desync",
        severity="critical",
        ranks=astray,
        text=text,
        evidence={
            "pattern": "skipped",
            "group": group,
            "seq": None,
            "op": None,
            "missing": astray,
            "skipped": {str(r): count for r, count in sorted(counts.items())},
            "reason": first.abandoned_why,
            "where": {str(r): beat.where or None for r, beat in sorted(beats.items())},
        },
        began=step,
    )


def shifted(state: RunState) -> Finding | None:
    """A rank's calls have matched the others' of another step for a while, and still do."""
    for group, offsets in state.offsets.shifted():
        ranks = sorted(offsets)
        first = min(offsets.values(), key=lambda each: each.since)
        moved = first.steps - first.before
        steps = f"{abs(moved)} step{'s' * (abs(moved) > 1)}"
        way = "ahead of" if moved > 0 else "behind"
        one = len(ranks) == 1
        text = (
            f"{name_ranks(ranks).capitalize()} {'has' if one else 'have'} been {steps} {way} the "
            f"others since step {first.since}, in the same calls of group {group}. What they "
            "exchange belongs to different steps, and no call fails. Look for what only "
            f"{'that rank' if one else 'those ranks'} skipped there: a backward, an optimizer "
            "step, a collective in a branch."
        )
        return Finding(
            kind="desync",
            severity="critical",
            ranks=ranks,
            text=text,
            evidence={
                "pattern": "shift",
                "group": group,
                "seq": None,
                "op": None,
                "missing": ranks,
                "ahead_steps": {str(r): each.steps - each.before for r, each in offsets.items()},
                "where": {},
            },
            began=first.since,
        )
    return None


def members(state: RunState) -> Finding | None:
    """Ranks that have or create one process group disagree about its members, and one is stuck."""
    told: dict[str, dict[int, tuple[int, ...]]] = {}
    for r, rank in state.ranks.items():
        for group in rank.groups if rank.bye else rank.hello.groups if rank.hello else ():
            told.setdefault(group.group, {})[r] = tuple(group.members)
        meeting = rank.beat.meeting if rank.beat else None
        if meeting is not None and meeting.group and meeting.members:
            told.setdefault(meeting.group, {})[r] = tuple(meeting.members)
    for name, by_rank in told.items():
        if len(set(by_rank.values())) > 1 and any(_is_stuck(state, r) for r in by_rank):
            return _disagree(state, name, by_rank)
    return None


def _is_stuck(state: RunState, r: int) -> bool:
    rank = state.ranks[r]
    if ending(rank) in (GAVE_UP, ABORTED):
        return True
    return rank.bye is None and rank.beat is not None and (rank.beat.still_ns or 0) >= STILL_NS


def _disagree(state: RunState, name: str, by_rank: dict[int, tuple[int, ...]]) -> Finding:
    ranks = sorted(by_rank)
    each = ", ".join(
        f"{name_ranks([r for r in ranks if by_rank[r] == made])} "
        f"{'has' if sum(m == made for m in by_rank.values()) == 1 else 'have'} [{_listed(made)}]"
        for made in dict.fromkeys(by_rank[r] for r in ranks)
    )
    beats = {r: state.ranks[r].beat for r in ranks}
    where = {str(r): beat.where or None if beat else None for r, beat in beats.items()}
    at = next((beat.where for beat in beats.values() if beat and beat.meeting and beat.where), "")
    text = (
        f"Ranks disagree about the members of process group {name}"
        f"{f', made at {at}' if at else ''}: {each}. They wait in it for ranks that never come. "
        "Call new_group on every rank for every group, in the same order, also for groups it is "
        "not in (or pass use_local_synchronization=True)."
    )
    return Finding(
        kind="desync",
        severity="critical",
        ranks=ranks,
        text=text,
        evidence={
            "pattern": "members",
            "group": name,
            "seq": None,
            "op": "new_group",
            "missing": [],
            "members": {str(r): list(by_rank[r]) for r in ranks},
            "where": where,
        },
    )


def _listed(members: tuple[int, ...]) -> str:
    more = ", …" if len(members) > 8 else ""
    return ", ".join(map(str, members[:8])) + more
