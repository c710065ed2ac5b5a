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
    cpu_oversubscribed,
    desync,
    gil_bound,
    hang,
    master_imbalance,
    oom,
    oom_risk,
    straggler,
)
from dpwatch.hub.diagnose.finding import Finding
from dpwatch.hub.snapshot import Diagnosis, Run

if TYPE_CHECKING:
    from dpwatch.hub.state import RunState

__all__ = ["EARLY", "KINDS", "RULES", "STATE_RULES", "Finding", "review"]

RULES: tuple[Callable[[Run], Finding | None], ...] = (
    oom.rule,
    oom_risk.rule,
    master_imbalance.rule,
    gil_bound.rule,
    cpu_oversubscribed.rule,
)
"""Rules that need no more than what the JSON holds."""

STATE_RULES: tuple[Callable[[Run, RunState], Finding | None], ...] = (
    desync.rule,
    hang.rule,
    straggler.rule,
)
"""Rules that look deeper: at arrival orders, positions, ends."""

EARLY: frozenset[Callable[..., Any]] = frozenset({oom.rule, desync.rule, hang.rule})
"""Rules that have something to say of a run's first steps too."""

KINDS = tuple(rule.__module__.rpartition(".")[2] for rule in (*RULES, *STATE_RULES))
"""What a diagnosis may be, each named like the file of its rule."""

PATIENCE = 3
"""Reviews (one a second) a rule must be silent before its diagnosis goes."""

MIN_STEPS = 3
"""Steps a run must have done before anything is said of it, but by `EARLY` rules."""

_SEVERITIES = ("critical", "warning", "info")


def review(
    run: Run,
    before: Sequence[Diagnosis],
    misses: dict[str, int],
    state: RunState | None = None,
) -> tuple[list[Diagnosis], dict[str, int]]:
    """Runs every rule and reconciles its answer with what was said before.

    Args:
        run: The run now.
        before: Diagnoses that held until now.
        misses: By kind, how often in a row its rule has been silent.
        state: What `run` was made from; without it `STATE_RULES` stay silent.

    Returns:
        Diagnoses that hold now, the worst first, and the new misses.
    """
    early = run.steps < MIN_STEPS
    held = {diagnosis.kind: diagnosis for diagnosis in before}
    now, silent = [], {}
    for finding in _findings(run, state, early=early):
        earlier = held.pop(finding.kind, None)
        began = run.steps if finding.began is None else finding.began
        now.append(finding.since(earlier.since_step if earlier else began))
    for kind, diagnosis in held.items():
        count = misses.get(kind, 0) + 1
        if count < PATIENCE:
            now.append(diagnosis)
            silent[kind] = count
    return sorted(now, key=lambda d: _SEVERITIES.index(d.severity)), silent


def _findings(run: Run, state: RunState | None, *, early: bool) -> Iterator[Finding]:
    for rule in RULES:
        if (not early or rule in EARLY) and (finding := rule(run)) is not None:
            yield finding
    if state is None:
        return
    for deeper in STATE_RULES:
        if (not early or deeper in EARLY) and (finding := deeper(run, state)) is not None:
            yield finding
