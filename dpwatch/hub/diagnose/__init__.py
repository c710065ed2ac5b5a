"""What is wrong, as pure functions of a run's numbers: one kind a file.

A rule takes a frozen `Run`, and the state it was made from where that is needed, and returns a
`Finding` or None. `review` gives findings their first
step and keeps one until its rule has been silent several times: an alert that flaps is worse than
none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dpwatch.hub.diagnose import (
    comm_bound,
    cpu_oversubscribed,
    desync,
    gil_bound,
    hang,
    input_bound,
    master_imbalance,
    memory_growth,
    memory_imbalance,
    nan_loss,
    no_steps,
    oom,
    oom_risk,
    overlap_poor,
    rank_lost,
    straggler,
)
from dpwatch.hub.diagnose.finding import Finding
from dpwatch.hub.snapshot import SEVERITIES, Diagnosis, Run

if TYPE_CHECKING:
    from dpwatch.hub.state import RunState

__all__ = ["EARLY", "KINDS", "RULES", "STATE_RULES", "Finding", "review"]

RULES: tuple[Callable[[Run], Finding | None], ...] = (
    oom.rule,
    oom_risk.rule,
    master_imbalance.rule,
    memory_imbalance.rule,
    gil_bound.rule,
    input_bound.rule,
    cpu_oversubscribed.rule,
)
"""Rules that need no more than what the JSON holds."""

STATE_RULES: tuple[Callable[[Run, RunState], Finding | None], ...] = (
    rank_lost.rule,
    desync.rule,
    hang.rule,
    straggler.rule,
    nan_loss.rule,
    no_steps.rule,
    comm_bound.rule,
    overlap_poor.rule,
    memory_growth.rule,
)
"""Rules that look deeper: at arrival orders, positions, ends."""

EARLY: frozenset[Callable[..., Any]] = frozenset(
    {oom.rule, rank_lost.rule, desync.rule, hang.rule, no_steps.rule}
)
"""Rules that have something to say of a run's first steps too."""

KINDS = tuple(rule.__module__.rpartition(".")[2] for rule in (*RULES, *STATE_RULES))
"""What a diagnosis may be, each named like the file of its rule."""

PATIENCE_NS = 3_000_000_000
"""How long a rule must be silent before its diagnosis goes."""

MIN_STEPS = 3
"""Steps a run must have done before anything is said of it, but by `EARLY` rules."""


def review(
    run: Run,
    before: Sequence[Diagnosis],
    silent_ns: dict[str, int],
    state: RunState,
) -> tuple[list[Diagnosis], dict[str, int]]:
    """Runs every rule and reconciles its answer with what was said before.

    Args:
        run: The run now.
        before: Diagnoses that held until now.
        silent_ns: By kind of these, since when its rule has had nothing to say.
        state: What `run` was made from.

    Returns:
        Diagnoses that hold now, the worst first, and since when which rules have been silent.
    """
    early = run.steps < MIN_STEPS
    held = {diagnosis.kind: diagnosis for diagnosis in before}
    now, silent = [], {}
    for finding in _findings(run, state, early=early):
        earlier = held.pop(finding.kind, None)
        began = run.steps if finding.began is None else finding.began
        # One rank's records may be here before another's that say that it began earlier.
        now.append(finding.since(min(began, earlier.since_step) if earlier else began))
    patience_ns = 0 if run.state == "finished" else PATIENCE_NS  # nothing will flap any more
    for kind, diagnosis in held.items():
        since_ns = silent_ns.get(kind, state.now_ns)
        if state.now_ns - since_ns < patience_ns:
            now.append(diagnosis)
            silent[kind] = since_ns
    return sorted(now, key=lambda d: -SEVERITIES.index(d.severity)), silent


def _findings(run: Run, state: RunState, *, early: bool) -> Iterator[Finding]:
    for rule in RULES:
        if (not early or rule in EARLY) and (finding := rule(run)) is not None:
            yield finding
    for deeper in STATE_RULES:
        if (not early or deeper in EARLY) and (finding := deeper(run, state)) is not None:
            yield finding
