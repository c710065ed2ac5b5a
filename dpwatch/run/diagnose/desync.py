"""`desync`: ranks of one group call different collectives at the same position of its sequence.

The first of these that applies:

- *calls*: two ranks' calls with the same number in the same group differ in op, or, for ops that
  need equal shares, in bytes or type. It considers completed calls, calls that some ranks have
  entered, and the newest and oldest call in flight from each heartbeat. A group whose numbers have
  never matched, in one call of all its ranks or in several of some, is not judged: the probe may
  have joined its ranks at different positions.
- *members*: ranks that create or have one process group disagree about its members, and one of
  them is stuck or gave up.
- *skipped*: a rank abandoned a pass that the others completed, and went on with the next one.
- *shift*: calls are alike, but a rank that was in step with the others has been a constant number
  of steps ahead or behind since a certain step; or it is in a call that does not complete.

Ranks that stop doing steps (parameter servers, ranks that joined early in DDP's `join`) are in
step as long as their calls are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from dpwatch.run.derive.wait_graph import moved_ns, oldest_of
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.diagnose.out_of_step import members, shifted, skipped
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.arrivals import fingerprint
from dpwatch.run.state.generations import is_current
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.step_offsets import usual
from dpwatch.units import size
from dpwatch.wire.messages import Collective, Position

MATCHED_CALLS = 8
"""This many matching calls of some ranks suffice if there is none of all ranks."""

STOPPED_NS = 3_000_000_000
"""Ranks that have not moved for this long may be judged by their steps too."""

Called = Collective | Position


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on the first position where calls differ."""
    standing: list[tuple[str, int, dict[int, Called]]] = []
    for group, seq, calls in _places(state):
        alike = {rank: fingerprint(call) for rank, call in calls.items()}
        if len(set(alike.values())) == 1:
            standing.append((group, seq, calls))
        elif _have_matched(state, group):
            return _finding(state, group, seq, calls, alike)
    found = members(state) or skipped(state) or shifted(state)
    if found is not None:
        return found
    for group, seq, calls in standing:
        if _strays(state, group, calls):
            steps = {rank: (str(call.step), 0, "") for rank, call in calls.items()}
            return _finding(state, group, seq, calls, steps)
    return None


def _strays(state: RunState, group: str, calls: dict[int, Called]) -> bool:
    """Whether ranks in one call that does not complete got there in different steps."""
    if not _under_way(calls) or not _stopped(state, calls) or not _have_matched(state, group):
        return False
    steps = {rank: call.step for rank, call in calls.items()}
    most = usual(steps)
    return any(state.offsets.has_left(group, r, step - most) for r, step in steps.items())


def _under_way(calls: dict[int, Called]) -> bool:
    """Whether no rank is known to have completed the call."""
    done = (
        call.done if isinstance(call, Position) else call.completed_ns is not None
        for call in calls.values()
    )
    return not any(done)


def _have_matched(state: RunState, group: str) -> bool:
    """Whether call numbers in the group mean the same call in all its ranks.

    A rank that died may have lost the record of its calls; then matching calls of the others count.
    """
    if state.arrivals.matched.get(group):
        return True
    matched = 0
    for entered in state.arrivals.waiting():
        each = {fingerprint(record) for record in entered.values() if record.group == group}
        matched += len(entered) > 1 and len(each) == 1
    return matched >= MATCHED_CALLS


def _places(state: RunState) -> Iterator[tuple[str, int, dict[int, Called]]]:
    """Positions in groups' sequences, and what each rank called there."""
    found = state.arrivals.mismatch
    if found is not None:
        yield found.group, found.seq, dict(found.calls)
    suspect = _suspects(state)
    if not suspect:
        return
    standing: dict[tuple[str, int], dict[int, Called]] = {}
    for rank, position in _positions(state):
        if (position.group, position.seq) in suspect:
            standing.setdefault((position.group, position.seq), {})[rank] = position
    for entered in state.arrivals.waiting():
        for rank, record in entered.items():
            if (record.group, record.seq) in suspect:
                standing.setdefault((record.group, record.seq), {}).setdefault(rank, record)
    for (group, seq), calls in sorted(standing.items(), key=lambda item: item[0][1]):
        if len(calls) > 1:
            yield group, seq, calls


def _suspects(state: RunState) -> set[tuple[str, int]]:
    """Positions with different calls or steps; mostly none, even of thousands of ranks."""
    found: dict[tuple[str, int], object] = {}
    suspect = set()
    positions = ((p.group, p.seq, p.step, fingerprint(p)) for _, p in _positions(state))
    for group, seq, *what in chain(positions, state.arrivals.open_signatures()):
        if found.setdefault((group, seq), what) != what:
            suspect.add((group, seq))
    return suspect


def _positions(state: RunState) -> Iterator[tuple[int, Position]]:
    """The newest and oldest call in flight of each rank in each of its groups."""
    for rank, who in state.ranks.items():
        for position in who.beat.positions if who.beat else ():
            if is_current(state, position):
                yield rank, position
                if position.oldest is not None:
                    yield rank, oldest_of(position, position.oldest)


def _stopped(state: RunState, calls: dict[int, Called]) -> bool:
    moved = [moved_ns(state.ranks[rank]) for rank in calls if rank in state.ranks]
    return all(at is not None and state.now_ns - at >= STOPPED_NS for at in moved)


def _finding(
    state: RunState,
    group: str,
    seq: int,
    calls: dict[int, Called],
    alike: dict[int, tuple[str, int, str]],
) -> Finding:
    expected = _usual(state, group, seq, calls, alike)
    astray = sorted(rank for rank in calls if alike[rank] != expected)
    ranks = astray
    if expected is None:  # a tie, and nothing tells who is right
        ranks, expected = sorted(calls), alike[max(calls)]
        astray = [rank for rank in ranks if alike[rank] != expected]
    odd, norm = calls[astray[0]], next(calls[r] for r in calls if alike[r] == expected)
    told = ranks == astray
    who = name_ranks(astray) if told else f"rank {astray[0]}"
    them = "the others" if told else f"rank {ranks[-1]}"
    said = (
        f"{who.capitalize()} called {_spelled(odd)} where {them} called {_spelled(norm)} "
        f"(group {group}, call {seq}). The ranks are out of step: what they exchange is garbage, "
        "or never completes. Look for a branch that only some ranks take, a call skipped after an "
        "exception, or uneven batches."
    )
    return Finding(
        kind="desync",
        severity="critical",
        ranks=ranks,
        text=said,
        evidence={
            "pattern": "calls",
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
    calls: dict[int, Called],
    alike: dict[int, tuple[str, int, str]],
) -> tuple[str, int, str] | None:
    """The expected call: that of most ranks, or the previous step's at this position."""
    (common, most), *_ = Counter(alike.values()).most_common(1)
    if 2 * most > len(calls):
        return common
    step = min(call.step for call in calls.values())
    expected = state.arrivals.expected(group, seq, step)
    return expected if expected in alike.values() else None


def _spelled(call: Called) -> str:
    what = f"{call.op} of {size(call.nbytes)} {call.dtype}".rstrip()
    return f"{what} in step {call.step}{f' at {call.where}' if call.where else ''}"
