"""`desync`: ranks of one group call different collectives at the same place of its sequence.

Rule: two ranks' calls with the same number in the same group differ in op, or, for ops that need
equal shares, in bytes or type. Looked at are calls that are over, calls that some have entered, and
how far heartbeats say that each has come. A group whose numbers have never matched, in one call of
all its ranks or in several of some, is not judged: the probe may have joined its ranks at different
places. Where they agree but the ranks are in different steps and nothing moves, one has left out a
call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from dpwatch.hub.arrivals import essence
from dpwatch.hub.diagnose.finding import Finding, mebibytes, ranks_of
from dpwatch.hub.generations import is_current, step_in_group
from dpwatch.hub.snapshot import Run
from dpwatch.hub.state import RunState
from dpwatch.hub.stuck import moved_ns
from dpwatch.wire.messages import Collective, Position

MATCHED_CALLS = 8
"""So many calls that some of the ranks entered alike do where there is none of all."""

STOPPED_NS = 3_000_000_000
"""Ranks that have not moved for so long may be judged by their steps too."""


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on the first place where calls differ."""
    for group, seq, calls in _places(state):
        alike = {rank: essence(call) for rank, call in calls.items()}
        if len(set(alike.values())) > 1:
            if _have_matched(state, group):
                return _finding(state, group, seq, calls, alike)
            continue
        steps = {r: (str(step_in_group(state, r, call)), 0, "") for r, call in calls.items()}
        if len(set(steps.values())) > 1 and _stopped(state, calls) and _have_matched(state, group):
            return _finding(state, group, seq, calls, steps)
    return None


def _have_matched(state: RunState, group: str) -> bool:
    """Whether numbers in the group stand for the same call in all its ranks.

    A rank that has died may have taken all that it called with it; then what the others called
    alike has to do.
    """
    if state.arrivals.alike.get(group):
        return True
    matched = 0
    for call in state.arrivals.calls.values():
        each = {essence(record) for record in call.entered.values() if record.group == group}
        matched += len(call.entered) > 1 and len(each) == 1
    return matched >= MATCHED_CALLS


def _places(state: RunState) -> Iterator[tuple[str, int, dict[int, Collective | Position]]]:
    """Places in groups' sequences, and what each rank is known to have called there."""
    found = state.arrivals.mismatch
    if found is not None:
        yield found.group, found.seq, dict(found.calls)
    suspect = _suspects(state)
    if not suspect:
        return
    standing: dict[tuple[str, int], dict[int, Collective | Position]] = {}
    for rank, position in _positions(state):
        if (position.group, position.seq) in suspect:
            standing.setdefault((position.group, position.seq), {})[rank] = position
    for call in state.arrivals.opened().values():
        for rank, record in call.entered.items():
            if (record.group, record.seq) in suspect:
                standing.setdefault((record.group, record.seq), {})[rank] = record
    for (group, seq), calls in sorted(standing.items(), key=lambda item: item[0][1]):
        if len(calls) > 1:
            yield group, seq, calls


def _suspects(state: RunState) -> set[tuple[str, int]]:
    """Places at which not all is one call in one step; of thousands of ranks mostly none."""
    found: dict[tuple[str, int], object] = {}
    suspect = set()
    positions = ((p.group, p.seq, p.step, essence(p)) for _, p in _positions(state))
    for group, seq, *what in chain(positions, state.arrivals.standing()):
        if found.setdefault((group, seq), what) != what:
            suspect.add((group, seq))
    return suspect


def _positions(state: RunState) -> Iterator[tuple[int, Position]]:
    for rank, who in state.ranks.items():
        for position in who.beat.positions if who.beat else ():
            if is_current(state, position):
                yield rank, position


def _stopped(state: RunState, calls: dict[int, Collective | Position]) -> bool:
    moved = [moved_ns(state.ranks[rank]) for rank in calls if rank in state.ranks]
    return all(at is not None and state.now_ns - at >= STOPPED_NS for at in moved)


def _finding(
    state: RunState,
    group: str,
    seq: int,
    calls: dict[int, Collective | Position],
    alike: dict[int, tuple[str, int, str]],
) -> Finding:
    usual = _usual(state, group, seq, calls, alike)
    astray = sorted(rank for rank in calls if alike[rank] != usual)
    ranks = astray
    if usual is None:  # as many call the one as the other, and nothing tells who is right
        ranks, usual = sorted(calls), alike[max(calls)]
        astray = [rank for rank in ranks if alike[rank] != usual]
    odd, norm = calls[astray[0]], next(calls[r] for r in calls if alike[r] == usual)
    told = ranks == astray
    who = ranks_of(astray, start=False) if told else f"rank {astray[0]}"
    them = "the others" if told else f"rank {ranks[-1]}"
    said = (
        f"At call {seq} of group {group} {who} called {_spelled(odd)}, {them} {_spelled(norm)}: "
        "they are out of step, and what they exchange is garbage or never ends. Look for a branch "
        "that only some ranks take, a call left out after an exception, or uneven batches."
    )
    return Finding(
        kind="desync",
        severity="critical",
        ranks=ranks,
        text=said,
        evidence={
            "group": group,
            "seq": seq,
            "op": norm.op,
            "missing": sorted(astray),
            "calls": {str(rank): _spelled(call) for rank, call in sorted(calls.items())},
            "where": {str(rank): call.where or None for rank, call in sorted(calls.items())},
        },
        began=min(call.step for call in calls.values()),
    )


def _usual(
    state: RunState,
    group: str,
    seq: int,
    calls: dict[int, Collective | Position],
    alike: dict[int, tuple[str, int, str]],
) -> tuple[str, int, str] | None:
    """What was to be called: what most ranks did, or what the step before had there."""
    (usual, most), *_ = Counter(alike.values()).most_common(1)
    if 2 * most > len(calls):
        return usual
    step = min(call.step for call in calls.values())
    expected = state.arrivals.expected(group, seq, step)
    return expected if expected in alike.values() else None


def _spelled(call: Collective | Position) -> str:
    size = f"{call.nbytes} B" if call.nbytes < 1 << 10 else mebibytes(call.nbytes)
    what = f"{call.op} of {size} {call.dtype}".rstrip()
    return f"{what} in step {call.step}{f' at {call.where}' if call.where else ''}"
