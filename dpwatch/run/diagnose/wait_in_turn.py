"""`wait_in_turn`: ranks wait for whichever is last, a different one each time.

Rule: it uses the same call of each step as `straggler`. Over the last steps (at least 20) ranks
waited there for the last one, on average over ranks and steps, for at least 15 % of the step (a
warning from 25 % on) minus twice the time without a core, for at least 5 ms, and half a second in
total; no rank has most of it; and no rank is a `straggler`. The cost is a mean, because a pause
every twelve steps doesn't show in a median.

What varies is the phase in which the ranks that were last had spent more time than the others.
*pauses*: most of it is lost in less than half of the steps; *varying*: a little in each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from dpwatch.quantiles import known, median
from dpwatch.run.diagnose import straggler
from dpwatch.run.diagnose.finding import Finding, some_of
from dpwatch.run.diagnose.late_phase import excesses_of
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.arrivals import LateArrival
from dpwatch.run.state.run_state import RunState

LEAST_STEPS = 20
MOST_STEPS = 128
WORTH_SAYING = 0.15
WARNING = 0.25
LEAST_NS = 5_000_000
LEAST_SUM_NS = 500_000_000

OUTLYING = 3.0
"""A wait this many times the median is a pause, …"""

MOSTLY = 0.7
"""… and with at least this share of the total, the waits are pauses."""

_WORDS = {
    "data": "waiting for data",
    "h2d": "copying the batch to the device",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "the optimizer",
    "other": "code outside the phases",
}
_LENGTHS = (
    "Batches may differ in length or work between ranks: sort them into buckets of similar length, "
    "or pack them, so that all ranks do the same work in each step."
)
_PAUSES = (
    "Often this is Python's garbage collector: call gc.freeze() after set-up, or gc.disable() and "
    "gc.collect() in the same steps on all ranks. Otherwise logging, checkpoints, allocations."
)
_ADVICE = {
    "data": "Let the data loaders work further ahead: more workers or a larger prefetch_factor.",
    "forward": _LENGTHS,
    "backward": _LENGTHS,
}


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on what the last rank of each step costs the others, whichever it is."""
    steps = straggler.widest_by_step(state)[-MOST_STEPS:]
    step_ns = _mean_step_ns(state)
    if step_ns is None or len(steps) < LEAST_STEPS or len(state.ranks) < 2:
        return None
    waited_ns = [late.waited_ns for late in steps]
    mean_ns = sum(waited_ns) / len(steps)
    queued = known(row.runqueue_wait for row in run.ranks)
    cost = mean_ns / step_ns
    net = cost - 2 * (sum(queued) / len(queued) if queued else 0.0)
    if net < WORTH_SAYING or mean_ns < max(LEAST_NS, straggler.least_ns(state)):
        return None
    shares = _shares(steps)
    if sum(waited_ns) < LEAST_SUM_NS or max(shares.values()) > _most(len(state.ranks)):
        return None
    if straggler.rule(run, state) is not None:
        return None
    severity = "warning" if net >= WARNING else "info"
    return _finding(state, steps, shares, severity, min(cost, 1.0), mean_ns, step_ns)


def _mean_step_ns(state: RunState) -> float | None:
    """The mean step time, including steps that are only counted."""
    means = []
    for rank in some_of(list(state.ranks.values())):
        if 0 not in rank.lanes:
            continue
        recent = rank.lanes[0].recent
        numbers, ends = recent.field("step"), recent.field("end_ns")
        if len(numbers) > 1 and numbers[-1] > numbers[0]:
            means.append((ends[-1] - ends[0]) / (numbers[-1] - numbers[0]))
    return median(means)


def _shares(steps: Sequence[LateArrival]) -> dict[int, float]:
    """By rank, its share of the waits, largest first."""
    lost: Counter[int] = Counter()
    for late in steps:
        lost[late.latest] += late.waited_ns
    return {r: ns / lost.total() for r, ns in lost.most_common()}


def _most(ranks: int) -> float:
    """The largest share of one rank at which they still take turns."""
    return 0.5 + 0.5 / ranks


def _finding(
    state: RunState,
    steps: Sequence[LateArrival],
    shares: dict[int, float],
    severity: str,
    cost: float,
    mean_ns: float,
    step_ns: float,
) -> Finding:
    pattern, often = _pattern(steps)
    phase = _phase(state, steps)
    what = f"what varies is {_WORDS[phase]}" if phase else "the phase that varies is not known"
    pauses = pattern == "pauses"
    advice = _ADVICE.get(phase or "", _PAUSES)
    if pauses and phase != "data":
        advice = _PAUSES
    how = f"are pauses in {often:.0%} of the steps" if pauses else "are short, in most steps"
    turns = ", ".join(f"rank {r} {share:.0%}" for r, share in list(shares.items())[:4])
    return Finding(
        kind="wait_in_turn",
        severity=severity,
        ranks=sorted(state.ranks),
        text=f"Ranks wait {cost:.0%} of the time ({mean_ns / 1e6:.0f} of {step_ns / 1e6:.0f} ms "
        f"per step) for whichever is last, each time another one ({turns} of the waits). The "
        f"waits {how}; {what}. {advice}",
        evidence={
            "pattern": pattern,
            "phase": phase,
            "cost": cost,
            "mean_wait_ms": mean_ns / 1e6,
            "mean_step_ms": step_ns / 1e6,
            "steps": len(steps),
            "evenness": _evenness(shares, len(state.ranks)),
            "last_share": {str(r): share for r, share in list(shares.items())[:8]},
        },
        began=steps[0].step,
    )


def _pattern(steps: Sequence[LateArrival]) -> tuple[str, float]:
    """Whether the waits are pauses, and in what share of the steps."""
    typical = median(late.waited_ns for late in steps) or 0.0
    long = [late.waited_ns for late in steps if late.waited_ns > OUTLYING * typical]
    share = len(long) / len(steps)
    mostly = sum(long) >= MOSTLY * sum(late.waited_ns for late in steps)
    return ("pauses" if mostly and share < 0.5 else "varying"), share


def _phase(state: RunState, steps: Sequence[LateArrival]) -> str | None:
    """The phase in which the last ranks together had spent most excess time."""
    total: Counter[str] = Counter()
    for rank in {late.latest for late in steps}:
        for found in excesses_of(state, [late for late in steps if late.latest == rank]):
            total.update({phase: int(ns) for phase, ns in found.items() if ns > 0})
    return total.most_common(1)[0][0] if total else None


def _evenness(shares: dict[int, float], ranks: int) -> float:
    """How evenly the ranks share the last place: 1.0 all alike, 0.0 always the same one."""
    entropy = -sum(share * math.log(share) for share in shares.values() if share > 0)
    return entropy / math.log(ranks)
