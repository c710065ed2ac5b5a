"""Diagnoses: pure functions of a run's figures, one kind per file.

A rule takes a frozen `Run`, and the state it was made from if it needs more, and returns a
`Finding` or None. `review` gives findings their first step, and keeps one until its rule has been
silent for a while, so that alerts don't flap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dpwatch.run.derive.verdict import CAUSES
from dpwatch.run.diagnose import (
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
    wait_in_turn,
)
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.snapshot import SEVERITIES, Diagnosis, Run
from dpwatch.run.state.endings import GAVE_UP, MAYBE_GAVE_UP, ends

if TYPE_CHECKING:
    from dpwatch.run.state.run_state import RunState

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
"""Rules that need only what the JSON has."""

STATE_RULES: tuple[Callable[[Run, RunState], Finding | None], ...] = (
    rank_lost.rule,
    desync.rule,
    hang.rule,
    straggler.rule,
    wait_in_turn.rule,
    nan_loss.rule,
    no_steps.rule,
    comm_bound.rule,
    overlap_poor.rule,
    memory_growth.rule,
)
"""Rules that need the state: arrival orders, positions, how ranks ended."""

EARLY: frozenset[Callable[..., Any]] = frozenset(
    {oom.rule, rank_lost.rule, desync.rule, hang.rule, no_steps.rule}
)
"""Rules that also apply to a run's first steps."""

KINDS = tuple(rule.__module__.rpartition(".")[2] for rule in (*RULES, *STATE_RULES))
"""The kinds of diagnoses; each is the name of its rule's file."""

ENDS = frozenset({"oom", "rank_lost"})
"""Kinds that say how ranks ended."""

OF_THE_HOST = frozenset({"cpu_oversubscribed"})
"""Kinds about the host, not the training."""

PATIENCE_NS = 3_000_000_000
"""How long a rule must be silent before its diagnosis goes."""

MIN_STEPS = 3
"""Steps before any rule but those in `EARLY` applies."""


def review(
    run: Run,
    before: Sequence[Diagnosis],
    silent_ns: dict[str, int],
    state: RunState,
) -> tuple[list[Diagnosis], dict[str, int]]:
    """Runs every rule and merges the findings with the current diagnoses.

    Args:
        run: The run now.
        before: Diagnoses that were active until now.
        silent_ns: By kind of these, since when its rule has found nothing.
        state: What `run` was made from.

    Returns:
        Active diagnoses, worst first, and since when which rules have found nothing.
    """
    early = run.steps < MIN_STEPS
    held = {diagnosis.kind: diagnosis for diagnosis in before}
    lasting = _lasting(before, silent_ns, state)
    now, silent = list(lasting.values()), {}
    for finding in _findings(run, state, early=early):
        earlier = held.pop(finding.kind, None)
        if finding.kind not in lasting:
            began = run.steps if finding.began is None else finding.began
            # Another rank's records, which may arrive later, may show that it began earlier.
            now.append(finding.since(min(began, earlier.since_step) if earlier else began))
    for kind, diagnosis in held.items():
        since_ns = silent_ns.get(kind, state.now_ns)
        if kind not in lasting and state.now_ns - since_ns < _patience_ns(run, kind):
            now.append(diagnosis)
            silent[kind] = since_ns
    return sorted(now, key=_worst_first), silent


def _lasting(
    before: Sequence[Diagnosis], silent_ns: dict[str, int], state: RunState
) -> dict[str, Diagnosis]:
    """Causes that were active when the first rank gave up waiting: they stay as they were then."""
    broken = ends(state.ranks.values())
    gave_up = any(how in (GAVE_UP, *MAYBE_GAVE_UP) for _, how in broken)
    return {
        each.kind: msgspec.structs.replace(each, severity="critical") if gave_up else each
        for each in before
        if broken
        and each.kind in CAUSES
        and each.kind not in silent_ns
        and (gave_up or each.severity == "critical")
    }


def _patience_ns(run: Run, kind: str) -> int:
    """How long a rule must be silent; 0 for finished runs and ranks' ends, which don't flap."""
    return 0 if run.state == "finished" or kind in ENDS else PATIENCE_NS


def _worst_first(diagnosis: Diagnosis) -> tuple[int, bool, bool, float]:
    """By severity; within one, causes first, host problems last, and by cost."""
    kind, cost = diagnosis.kind, diagnosis.evidence.get("cost") or 0.0
    return (
        -SEVERITIES.index(diagnosis.severity),
        kind not in CAUSES,
        kind in OF_THE_HOST,
        -cost,
    )


def _findings(run: Run, state: RunState, *, early: bool) -> Iterator[Finding]:
    for rule in RULES:
        if (not early or rule in EARLY) and (finding := rule(run)) is not None:
            yield finding
    for deeper in STATE_RULES:
        if (not early or deeper in EARLY) and (finding := deeper(run, state)) is not None:
            yield finding
