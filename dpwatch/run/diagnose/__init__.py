"""What is wrong, as pure functions of a run's numbers: one kind a file.

A rule takes a frozen `Run`, and the state it was made from where that is needed, and returns a
`Finding` or None. `review` gives findings their first
step and keeps one until its rule has been silent several times: an alert that flaps is worse than
none.
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
"""Rules that need no more than what the JSON holds."""

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
"""Rules that look deeper: at arrival orders, positions, ends."""

EARLY: frozenset[Callable[..., Any]] = frozenset(
    {oom.rule, rank_lost.rule, desync.rule, hang.rule, no_steps.rule}
)
"""Rules that have something to say of a run's first steps too."""

KINDS = tuple(rule.__module__.rpartition(".")[2] for rule in (*RULES, *STATE_RULES))
"""What a diagnosis may be, each named like the file of its rule."""

ENDS = frozenset({"oom", "rank_lost"})
"""Kinds that say how ranks ended."""

OF_THE_HOST = frozenset({"cpu_oversubscribed"})
"""Kinds that say nothing of the training itself."""

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
    lasting = _lasting(before, silent_ns, state)
    now, silent = list(lasting.values()), {}
    for finding in _findings(run, state, early=early):
        earlier = held.pop(finding.kind, None)
        if finding.kind not in lasting:
            began = run.steps if finding.began is None else finding.began
            # One rank's records may be here before another's that say that it began earlier.
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
    """What held when the first rank gave up waiting: it says why, and stays as it was then."""
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
    """How long a rule must be silent: of a run that is over, or a rank's end, nothing flaps."""
    return 0 if run.state == "finished" or kind in ENDS else PATIENCE_NS


def _worst_first(diagnosis: Diagnosis) -> tuple[int, bool, bool, float]:
    """By severity; among equals causes first, what is the host's own last, and by the cost."""
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
