"""Derives a run's state and its reason, the same sentence on screens, in JSON and on stderr.

The reason of a failed run is its cause and not its first victim: the diagnosis that held when the
first rank gave up waiting, else the rank that ended by itself first. Such diagnoses are kept once
the run has failed (see `diagnose.review`).
"""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.run.derive.doing import doing
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Diagnosis, Rank
from dpwatch.run.state.endings import BY_ITSELF, GAVE_UP
from dpwatch.run.state.exits import ended_by_ctrl_c, may_have_failed, signal_name
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import INTERRUPTED

CAUSES = ("hang", "desync")
"""Kinds of diagnoses that explain why ranks gave up waiting."""

ABSENT_S = 2.0
"""Seconds to wait for unseen ranks after all known ones have ended."""


def verdict(state: RunState, rows: Sequence[Rank]) -> tuple[str, str]:
    """The run's state, and the reason if it is a bad one."""
    if state.stopped:
        return "failed", INTERRUPTED
    dead = died(state)
    if dead:
        return _broken(state, dead)
    if ended(state):
        return _over(state)
    stalled = sorted({row.rank for row in rows if row.state == "stalled"})
    held = held_cause(state.diagnoses)
    if held is not None and (held.kind == "hang" or stalled):
        return "hung", first_sentence(held.text)
    unexplained = [r for r in stalled if not doing(state, r).passes]
    if unexplained:
        return "hung", f"no step for a long time on {name_ranks(unexplained)}"
    silent = sorted({row.host for row in rows if row.state == "stale"})
    why = f"no report from {', '.join(silent)}; its ranks are shown as last seen" if silent else ""
    if any(row.steps for row in rows):
        return "running", why
    return "starting", ""


def ended(state: RunState) -> bool:
    """Whether every rank has ended.

    In a short run one rank may end before another has reported for the first time. Unseen ranks are
    waited for, for `ABSENT_S`, except on a node's hub, since they are on other hosts.
    """
    if not state.ranks or any(rank.bye is None for rank in state.ranks.values()):
        return False
    if state.joined is not None and state.joined.role == "node":
        return True
    quiet_ns = state.now_ns - (state.end_ns or 0)
    return len(state.ranks) >= state.world_size or quiet_ns > ABSENT_S * 1e9


def died(state: RunState) -> list[tuple[RankState, str]]:
    """Ranks that ended without finishing, and how, in the order of `endings.ends`."""
    return state.died(explained=held_cause(state.diagnoses) is not None)


def held_cause(diagnoses: Sequence[Diagnosis]) -> Diagnosis | None:
    """The diagnosis that explains why ranks gave up waiting, None if there is none."""
    found = (d for d in diagnoses if d.kind in CAUSES and d.severity == "critical")
    return next(found, None)


def first_sentence(text: str) -> str:
    """The text before the first full stop or semicolon."""
    return text.partition(". ")[0].partition("; ")[0].rstrip(".")


def command_end(code: int) -> str:
    """How the command of `dpwatch run` ended, as a clause."""
    if code < 0:
        return f"the command was killed by {signal_name(-code)}"
    return f"the command ended with exit code {code}"


def _over(state: RunState) -> tuple[str, str]:
    """State and reason of a run whose ranks all reported that they finished."""
    if ended_by_ctrl_c(state.ranks.values(), state.command):
        return "failed", INTERRUPTED
    code = state.command.exit if state.command else None
    if code and any(rank.bye and may_have_failed(rank.bye) for rank in state.ranks.values()):
        return "failed", f"{command_end(code)}, and no rank reported why"
    return "finished", ""


def _broken(state: RunState, dead: Sequence[tuple[RankState, str]]) -> tuple[str, str]:
    first, how = dead[0]
    outcome = first.bye.state if first.bye is not None else "lost"
    reason = first.bye.reason if first.bye is not None else ""
    gave_up = sorted(rank.rank for rank, each in dead if each == GAVE_UP)
    held = held_cause(state.diagnoses)
    if held is not None:
        outcome = outcome if how in BY_ITSELF else "failed"
        then = (
            f"{name_ranks(gave_up)} gave up waiting" if gave_up else f"rank {first.rank}: {reason}"
        )
        return outcome, f"{first_sentence(held.text)}; {then}"
    if how == GAVE_UP:
        return outcome, f"{name_ranks(gave_up)} gave up waiting: {reason}"
    return outcome, f"rank {first.rank}: {reason}"
