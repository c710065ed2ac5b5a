"""`rank_lost`: a rank has died, and the run with it.

Rule: a rank's process has ended without reporting, or its training raised (except out of memory,
which is `oom`). It names the rank that ended by itself first; its peers fail because it is gone, so
a rank that gave up waiting is never named alone. If all gave up and neither a `hang` nor a `desync`
explains it, all are named, once every rank has ended or a while has passed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from dpwatch.run.derive.verdict import died, held_cause
from dpwatch.run.diagnose import desync, hang, oom
from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.endings import ABORTED, FINISHED, GAVE_UP, QUIT, STOPPED, ending, last_step
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState

UNEXPLAINED_NS = 3_000_000_000
"""This long after the first rank gave up, an explanation would have arrived."""

_ADVICE = {
    -signal.SIGKILL: "Often the host is out of memory: check dmesg and the container's limit.",
    -signal.SIGSEGV: "A native library crashed: run it with python -X faulthandler.",
    -signal.SIGBUS: "Often shared memory (/dev/shm) is full: give the container more.",
    -signal.SIGABRT: "A native library aborted: see the end of that rank's stderr.",
    -signal.SIGTERM: "Something terminated it: a scheduler's time limit, or a launcher.",
}

MOST_UNHEARD = 8

_LOADER_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\)")


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on ranks that have died."""
    if oom.rule(run) is not None or state.stopped:
        return None
    dead = died(state)
    if not dead:
        return None
    first, how = dead[0]
    if how == GAVE_UP:
        return _unexplained(run, state, dead)
    if how in (QUIT, ABORTED, STOPPED) and _is_explained(run, state):
        return None
    others = [rank for rank, _ in dead if rank is not first]
    parts = (_said(first), _advice(first), _went_after(others), _unheard(state, how))
    return Finding(
        kind="rank_lost",
        severity="critical",
        ranks=[first.rank],
        text=" ".join(part for part in parts if part),
        evidence={"pattern": "ended", **_facts(first), "also": [rank.rank for rank in others]},
    )


def _unheard(state: RunState, how: str) -> str:
    """If ranks were only stopped: which ranks may have failed before they could report."""
    alone = state.joined is None or state.joined.role == "head"
    missing = [r for r in range(state.world_size) if r not in state.ranks] if alone else []
    if how != STOPPED or not 0 < len(missing) <= MOST_UNHEARD:
        return ""
    return (
        f"{name_ranks(missing).capitalize()} never reported: check what "
        f"{'it' if len(missing) == 1 else 'they'} printed."
    )


def _is_explained(run: Run, state: RunState) -> bool:
    """Whether another finding says why ranks ended."""
    held = held_cause(state.diagnoses)
    return bool(held or desync.rule(run, state) or hang.rule(run, state))


def _unexplained(
    run: Run, state: RunState, dead: Sequence[tuple[RankState, str]]
) -> Finding | None:
    """All ranks that ended gave up waiting, and it is not known for whom."""
    gave_up = [rank for rank, how in dead if how == GAVE_UP]
    first = gave_up[0]
    waits = any(rank.bye is None for rank in state.ranks.values())
    if waits and state.now_ns - first.ended_ns < UNEXPLAINED_NS:
        return None
    if _is_explained(run, state):
        return None  # which says whom they waited for
    ranks = sorted(rank.rank for rank in gave_up)
    reason = first.bye.reason.rstrip(".") if first.bye else ""
    return Finding(
        kind="rank_lost",
        severity="critical",
        ranks=ranks,
        text=f"{name_ranks(ranks).capitalize()} gave up waiting for other ranks{_step(first)}: "
        f"{reason}. "
        f"{_who_else(state, gave_up)}",
        evidence={"pattern": "gave_up", **_facts(first), "also": ranks[1:]},
    )


def _who_else(state: RunState, gave_up: Sequence[RankState]) -> str:
    """What is known of the others, none of which is known to have been waited for."""
    finished = sorted(r for r, rank in state.ranks.items() if ending(rank) == FINISHED)
    running = sorted(r for r, rank in state.ranks.items() if rank.bye is None)
    told = []
    if finished:
        told.append(f"{name_ranks(finished).capitalize()} had finished before.")
    if running:
        told.append(
            f"{name_ranks(running).capitalize()} {'is' if len(running) == 1 else 'are'} still "
            "running."
        )
    if len(gave_up) == len(state.ranks):
        told.append("No rank failed by itself first.")
    told.append("Check the network between them, and the end of each one's output.")
    return " ".join(told)


def _facts(rank: RankState) -> dict[str, object]:
    return {
        "exit": rank.bye.exit if rank.bye else None,
        "reason": rank.bye.reason if rank.bye else "",
        "host": rank.host,
        "pid": rank.pid,
        "step": last_step(rank),
        "where": rank.beat.where or None if rank.beat else None,
    }


def _step(rank: RankState) -> str:
    step = last_step(rank)
    return "" if step is None else f" in step {step}"


def _said(rank: RankState) -> str:
    bye = rank.bye
    at = f" at {rank.beat.where}" if rank.beat and rank.beat.where else ""
    if bye is not None and bye.state == "failed":
        return f"Rank {rank.rank} failed{_step(rank)}{at}: {bye.reason.rstrip('.')}."
    reason = bye.reason if bye else ""
    return f"Rank {rank.rank} was lost{_step(rank)}: {reason}{f', last seen{at}' if at else ''}."


def _advice(rank: RankState) -> str:
    bye = rank.bye
    if bye is None:
        return ""
    if _LOADER_WORKER.search(bye.reason):
        return (
            "A worker process of its DataLoader died: check dmesg (out of memory, or /dev/shm "
            "full), and try num_workers=0 to see the worker's own error."
        )
    if bye.state == "failed":
        return ""
    if bye.exit is None:
        return "Check the end of its stderr, and dmesg."
    return _ADVICE.get(bye.exit, "")


def _went_after(others: Sequence[RankState]) -> str:
    if not others:
        return ""
    return f"{name_ranks(sorted(rank.rank for rank in others)).capitalize()} ended after it."
