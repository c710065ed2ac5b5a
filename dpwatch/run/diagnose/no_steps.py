"""`no_steps`: dpwatch sees the process but none of its training steps.

Rule: a rank's probe reports after ten seconds, or at the end, that it has seen no step, and why;
and no rank has shown one. Ranks that failed don't count.
"""

from __future__ import annotations

from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.endings import FINISHED, ending
from dpwatch.run.state.run_state import RunState


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on what probes report about themselves."""
    if run.steps:
        return None
    able = [rank for rank in state.ranks.values() if ending(rank) in (None, FINISHED)]
    notes = {rank.rank: rank.hello.note for rank in able if rank.hello and rank.hello.note}
    if not notes:
        return None
    ranks = sorted(notes)
    why = notes[ranks[0]]
    return Finding(
        kind="no_steps",
        severity="info",
        ranks=ranks,
        text=f"No training step was seen on {name_ranks(ranks)}: {why}. If it has "
        "its own training loop, call dpwatch.step() at the end of each step.",
        evidence={"why": why},
    )
