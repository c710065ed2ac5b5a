"""`straggler`: one rank is last to enter collectives, and the others wait for it.

Rule: in each step, the call counts that has the widest gap between the last rank and the one before
it (the earliest such call, since ranks delayed by a straggler are late to the next group's call).

- *constant*: in at least 80 % of the last 5 (10, 20, … 160) steps it was the same rank, by at least
  5 % of the step and 2 ms in the median, by 200 ms in total, and not by chance: too often the same
  one of N ranks; or steadily, and by much more than ranks were apart before or are among
  themselves.
- *occasional*: nearly all gaps of at least half a step and 5 times the usual were that rank's.

The cause is the phase in which it spent more time than the others before the call; host code
between phases is `other`. Time in which its thread had no core doesn't count, nor what ranks of
this host wait for one on average, since one of them may lag by that much.

Over several hosts the gap must also be four times the error of their clocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev

from dpwatch.quantiles import median
from dpwatch.run.diagnose.finding import Finding, some_of
from dpwatch.run.diagnose.late_phase import PHASE_ADVICE, PHASE_WORDS, Cause, cause_of
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.arrivals import LateArrival
from dpwatch.run.state.run_state import RunState

LEAST_NS = 2_000_000
LEAST_SHARE = 0.05
"""The least share of the step that the rank has to cost."""

CLOCK_ERRORS = 4
"""How many times the error between hosts' clocks a gap must be."""

SIZES = (5, 10, 20, 40, 80, 160)
LEAST_SUM_NS = 200_000_000
"""Less in total is a hiccup of the host, which lasts a moment and hits one rank."""

CONSTANCY = 0.8
NO_CHANCE, UNLIKELY = 1e-5, 1e-3
STEADY = 6.0
"""Student's t from which a rank's lateness is steady, …"""

UNUSUAL = 3.0
"""… and how much larger it must be than ranks' usual distance."""

OUTLIER = 0.5
"""Of a step, …"""

OUTLYING = 5.0
"""… and times the usual gap: a gap this wide counts as a delayed step."""

FEW = 3
WARNING = 0.15
ALIKE = 0.7
"""Gaps of at least this share of the widest count as equally wide."""

LEAST_STEPS = 5
QUEUE_STEPS = 32

CROWDS = 1.5
"""How many times the mean wait for a core a gap must be, …"""

CROWDED, CROWDED_SIZE = 0.15, 20
"""… and from which share of the step on this many steps are needed: a thread lacks a core for
several steps in a row."""


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on who came last, how often, and by how much."""
    steps = widest_by_step(state)
    step_ns = _step_ns(state)
    if not step_ns or len(steps) < LEAST_STEPS:
        return None
    return _always(state, steps, step_ns) or _now_and_then(state, steps, step_ns)


def _step_ns(state: RunState) -> float | None:
    """The current step time: the rank has to cost a share of this, not of earlier steps."""
    return median(
        median(rank.lanes[0].recent.took_ns(LEAST_STEPS))
        for rank in some_of(list(state.ranks.values()))
        if 0 in rank.lanes
    )


def widest_by_step(state: RunState) -> list[LateArrival]:
    """The call with the widest gap of each complete step, oldest step first."""
    done = min((r.lanes[0].steps for r in state.ranks.values() if 0 in r.lanes), default=0)
    chosen = []
    for step in sorted(state.arrivals.late):
        calls = state.arrivals.late[step]
        if step >= done or not calls:
            continue
        least_ns = ALIKE * calls[0].gap_ns
        if len(calls) == 1 or calls[1].gap_ns < least_ns:  # they are sorted
            chosen.append(calls[0])
        else:
            wide = [call for call in calls if call.gap_ns >= least_ns]
            chosen.append(min(wide, key=lambda call: call.arrived_ns))
    return chosen


def _always(state: RunState, steps: Sequence[LateArrival], step_ns: float) -> Finding | None:
    crowd_ns = CROWDS * crowding_ns(state)
    is_crowded = crowd_ns >= CROWDED * step_ns
    for size in SIZES[SIZES.index(CROWDED_SIZE) :] if is_crowded else SIZES:
        window, before = steps[-size:], steps[:-size]
        if len(window) < size:
            return None
        rank, count = Counter(late.latest for late in window).most_common(1)[0]
        signed = [late.gap_ns if late.latest == rank else -late.gap_ns for late in window]
        enough_ns = max(least_ns(state), LEAST_SHARE * step_ns, crowd_ns)
        gap_ns = median(signed) or 0.0
        if (
            count >= CONSTANCY * size
            and sum(signed) >= LEAST_SUM_NS
            and gap_ns >= enough_ns
            and (gap_ns := gap_ns - _queued_ns(state, rank)) >= enough_ns
            and (
                _luck(size, count, len(state.ranks)) <= NO_CHANCE
                or _stands_out(signed, _usual_ns(window, before, len(state.ranks)))
            )
        ):
            own = [late for late in window if late.latest == rank]
            began = _streak(steps, rank, gap_ns)
            return _finding(state, own, size, step_ns, gap_ns, began)
    return None


def _streak(steps: Sequence[LateArrival], rank: int, gap_ns: float) -> int:
    """The step since which the rank has been last by about as much as now."""
    began = steps[-1].step
    for late in reversed(steps):
        alike = late.latest == rank and late.gap_ns >= gap_ns / 2
        if not alike and began - late.step > 1:
            break
        if alike:
            began = late.step
    return began


def _usual_ns(
    window: Sequence[LateArrival], before: Sequence[LateArrival], ranks: int
) -> float | None:
    """How far apart ranks usually arrive, None if unknown."""
    if len(before) >= LEAST_STEPS:
        return median(late.gap_ns for late in before)
    # From the median of the others to the last of them is about half of their spread.
    return median(2 * (late.lag_ns - late.gap_ns) for late in window) if ranks > 2 else None


def _stands_out(signed: Sequence[float], usual_ns: float | None) -> bool:
    """Whether the rank is late steadily, and by more than usual."""
    mean, error = fmean(signed), stdev(signed) / math.sqrt(len(signed))
    return usual_ns is not None and mean >= max(STEADY * error, UNUSUAL * usual_ns)


def _luck(size: int, count: int, ranks: int) -> float:
    """The probability that any one of the ranks is last so often by chance."""
    p = 1 / max(2, ranks)
    tail = sum(math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(count, size + 1))
    return min(1.0, ranks * tail)


def _now_and_then(state: RunState, steps: Sequence[LateArrival], step_ns: float) -> Finding | None:
    usual_ns = median(late.gap_ns for late in steps) or 0.0
    wide_ns = max(2 * least_ns(state), OUTLIER * step_ns, OUTLYING * usual_ns)
    held_up = [late for late in steps if late.gap_ns >= wide_ns]
    if not held_up:
        return None
    rank, count = Counter(late.latest for late in held_up).most_common(1)[0]
    own = [late for late in held_up if late.latest == rank]
    cost_ns = sum(late.gap_ns for late in own) / len(steps)
    rare = _luck(len(held_up), count, len(state.ranks)) <= UNLIKELY
    # Once more than half of the steps are delayed, the median step includes it and this is silent.
    crowd_ns = CROWDS * crowding_ns(state)
    least_cost_ns = max(LEAST_SHARE * step_ns, crowd_ns)
    if count < FEW or not rare or cost_ns < least_cost_ns or count > len(steps) // 2:
        return None
    gap_ns = (median(late.gap_ns for late in own) or 0.0) - _queued_ns(state, rank)
    if gap_ns < max(least_ns(state), crowd_ns):
        return None
    return _finding(state, own, len(steps), step_ns, gap_ns)


def least_ns(state: RunState) -> float:
    """The least meaningful gap: above the error of several hosts' clocks."""
    error_ns = state.clock_error_ns(rank.host for rank in state.ranks.values())
    return math.inf if error_ns is None else max(LEAST_NS, CLOCK_ERRORS * error_ns)


def crowding_ns(state: RunState) -> float:
    """How long per step ranks wait for a core on average: one may lag by that much."""
    waits = [
        fmean(found)
        for rank in some_of(list(state.ranks.values()))
        if 0 in rank.lanes and (found := rank.lanes[0].recent.known("runqueue_ns", QUEUE_STEPS))
    ]
    return fmean(waits) if waits else 0.0


def _queued_ns(state: RunState, rank: int) -> float:
    """How much longer per step this rank's thread waited for a core than the others' did."""
    own = _typical_queue(state, rank)
    others = median(_typical_queue(state, r) for r in some_of(list(state.ranks)) if r != rank)
    return 0.0 if own is None or others is None else max(0.0, own - others)


def _typical_queue(state: RunState, rank: int) -> float | None:
    lane = state.ranks[rank].lanes.get(0)
    return None if lane is None else median(lane.recent.known("runqueue_ns", QUEUE_STEPS))


def _finding(
    state: RunState,
    own: Sequence[LateArrival],
    of: int,
    step_ns: float,
    gap_ns: float,
    began: int | None = None,
) -> Finding:
    """The finding for a rank that is always late since `began`, or now and then (None)."""
    last = own[-1]
    rank = last.latest
    cause = cause_of(state, own)
    often = f"in {len(own)} of the last {of} steps"
    if began is None:
        cost = sum(late.gap_ns for late in own) / (of * step_ns)
        said = (
            f"Rank {rank} delays the others now and then: {often}, by "
            f"{gap_ns / 1e6:.0f} ms each time, {cost:.0%} of all time"
        )
    else:
        cost = min(1.0, gap_ns / step_ns)
        said = (
            f"Rank {rank} is the last to enter {last.op} {often}, {gap_ns / 1e6:.0f} ms after "
            f"the others: they wait for it {cost:.0%} of each step"
        )
    return Finding(
        kind="straggler",
        severity="info" if began is None or cost < WARNING else "warning",
        ranks=[rank],
        text=f"{said}. {_why(cause)}",
        evidence={
            "phase": cause.phase if cause else None,
            "pattern": "occasional" if began is None else "constant",
            "late_steps": len(own),
            "steps": of,
            "gap_ms": gap_ns / 1e6,
            "cost": cost,
            "excess_ms": cause.excess_ns / 1e6 if cause else None,
            "op": last.op,
            "group": last.group,
            "seq": last.seq,
            "where": last.where or None,
        },
        began=own[0].step if began is None else began,
    )


def _why(cause: Cause | None) -> str:
    if cause is None:
        return "The cause is not known: phases of short steps are only sampled."
    more, where = f"{cause.excess_ns / 1e6:.0f} ms more", PHASE_WORDS[cause.phase]
    return f"It spends {more} than they do {where}. {PHASE_ADVICE[cause.phase]}"
