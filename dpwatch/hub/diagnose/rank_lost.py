"""`rank_lost`: a rank has died, and the run with it.

Rule: a rank's process has ended without a goodbye, or its training raised (unless for want of
memory, which is `oom`). Named is the one that went first: its peers fail because it is gone.
"""

from __future__ import annotations

import signal

from dpwatch.hub.diagnose import oom
from dpwatch.hub.diagnose.finding import Finding, ranks_of
from dpwatch.hub.parts import RankState
from dpwatch.hub.snapshot import Run
from dpwatch.hub.state import RunState

_ADVICE = {
    -signal.SIGKILL: "Often it is the kernel, out of memory: see dmesg and the container's limit.",
    -signal.SIGSEGV: "A native library crashed: run it with -X faulthandler.",
    -signal.SIGABRT: "A native library gave up: its last words are in that rank's stderr.",
    -signal.SIGTERM: "Somebody ended it: a scheduler's time limit, or a launcher.",
}


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on ranks that are gone."""
    if oom.rule(run) is not None:
        return None
    gone = state.gone
    if not gone:
        return None
    first = gone[0]
    return Finding(
        kind="rank_lost",
        severity="critical",
        ranks=[first.rank],
        text=f"{_said(first)} {_advice(first)}{_others(gone[1:])}".strip(),
        evidence={
            "exit": first.bye.exit if first.bye else None,
            "reason": first.bye.reason if first.bye else "",
            "host": first.host,
            "pid": first.pid,
            "step": first.beat.step if first.beat else None,
            "where": first.beat.where or None if first.beat else None,
            "also": [rank.rank for rank in gone[1:]],
        },
    )


def _said(rank: RankState) -> str:
    bye = rank.bye
    step = f" in step {rank.beat.step}" if rank.beat else ""
    place = f", last seen at {rank.beat.where}" if rank.beat and rank.beat.where else ""
    if bye is not None and bye.state == "failed":
        return f"Rank {rank.rank} failed{step}: {bye.reason.rstrip('.')}."
    reason = bye.reason if bye else ""
    return f"Rank {rank.rank} is lost{step}: {reason}{place}."


def _advice(rank: RankState) -> str:
    if rank.bye is None or rank.bye.state == "failed":
        return ""
    if rank.bye.exit is None:
        return "Look for its last words in its stderr, and for the kernel's in dmesg."
    return _ADVICE.get(rank.bye.exit, "")


def _others(gone: list[RankState]) -> str:
    if not gone:
        return ""
    return f" {ranks_of(sorted(rank.rank for rank in gone))} went after it."
