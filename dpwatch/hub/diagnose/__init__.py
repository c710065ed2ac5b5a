"""What is wrong, as pure functions of a run's numbers: one kind a file.

A rule takes a frozen `Run` and returns a `Finding` or None. `review` gives findings their first
step and keeps one until its rule has been silent several times: an alert that flaps is worse than
none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpwatch.hub.diagnose import cpu_oversubscribed, gil_bound, master_imbalance, oom, oom_risk
from dpwatch.hub.diagnose.finding import Finding
from dpwatch.hub.snapshot import Diagnosis, Run

__all__ = ["RULES", "Finding", "review"]

RULES: tuple[Callable[[Run], Finding | None], ...] = (
    oom.rule,
    oom_risk.rule,
    master_imbalance.rule,
    gil_bound.rule,
    cpu_oversubscribed.rule,
)

PATIENCE = 3
"""Reviews (one a second) a rule must be silent before its diagnosis goes."""

MIN_STEPS = 3
"""Steps a run must have done before anything is said of it, but for why it failed."""

_SEVERITIES = ("critical", "warning", "info")


def review(
    run: Run, before: Sequence[Diagnosis], misses: dict[str, int]
) -> tuple[list[Diagnosis], dict[str, int]]:
    """Runs every rule and reconciles its answer with what was said before.

    Args:
        run: The run now.
        before: Diagnoses that held until now.
        misses: By kind, how often in a row its rule has been silent.

    Returns:
        Diagnoses that hold now, the worst first, and the new misses.
    """
    early = run.steps < MIN_STEPS
    if early and run.state != "failed":
        return list(before), misses
    held = {diagnosis.kind: diagnosis for diagnosis in before}
    now, silent = [], {}
    for rule in (oom.rule,) if early else RULES:
        finding = rule(run)
        if finding is not None:
            earlier = held.pop(finding.kind, None)
            now.append(finding.since(earlier.since_step if earlier else run.steps))
    for kind, diagnosis in held.items():
        count = misses.get(kind, 0) + 1
        if count < PATIENCE:
            now.append(diagnosis)
            silent[kind] = count
    return sorted(now, key=lambda d: _SEVERITIES.index(d.severity)), silent
