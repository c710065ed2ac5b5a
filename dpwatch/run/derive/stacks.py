"""Derives the displayed stacks of ranks from the state."""

from __future__ import annotations

from dpwatch.run.model.stacks import RankStacks
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.stacks import PATIENCE_NS, STOPPED

_PROCESS = {
    "T": "its process is stopped (SIGSTOP or SIGTSTP); SIGCONT lets it go on",
    "t": "a debugger has stopped its process",
    "D": "its process is in the kernel and can't be interrupted: disk, network file system, driver",
    "R": "its process runs, but no other Python thread gets to: native code holds the GIL, "
    "or there is no free core",
    "S": "its process sleeps and no other Python thread gets to run: native code holds the GIL",
    "": "it is stopped, or native code holds the GIL",
}


def stack_views(state: RunState) -> tuple[RankStacks, ...]:
    """Stacks of all ranks, empty before the first request."""
    if not any(rank.dump.asked for rank in state.ranks.values()):
        return ()
    return tuple(_stack_view(rank, state.now_ns) for rank in state.ranks.values())


def _stack_view(rank: RankState, now_ns: int) -> RankStacks:
    dump, answer, beat = rank.dump, rank.dump.stacks, rank.beat
    waited_ns = max(0, now_ns - dump.asked_ns)
    status = _status(rank, waited_ns)
    return RankStacks(
        rank=rank.rank,
        host=rank.host,
        pid=rank.pid,
        asked=dump.asked,
        answered=answer.asked if answer else 0,
        standing=status,
        why=_why(rank, status, waited_ns / 1e9),
        waited_s=waited_ns / 1e9 if status in ("awaited", "silent") else None,
        age_s=max(0, now_ns - answer.taken_ns) / 1e9 if answer else None,
        threads=tuple(answer.threads) if answer else (),
        left_out=answer.left_out if answer else 0,
        seen_at=beat.where if beat else "",
        seen_s=max(0, now_ns - rank.seen_ns) / 1e9 if beat else None,
    )


def _status(rank: RankState, waited_ns: int) -> str:
    dump = rank.dump
    if rank.bye is not None:
        return "ended"
    if not dump.awaited:
        return "answered" if dump.stacks else "unasked"
    is_silent = dump.process in STOPPED or (dump.process is not None and waited_ns >= PATIENCE_NS)
    return "silent" if is_silent else "awaited"


def _why(rank: RankState, status: str, waited_s: float) -> str:
    if status == "silent":
        known = _PROCESS.get(rank.dump.process or "", _PROCESS[""])
        return f"no answer for {waited_s:.0f} s: {known}"
    answer = rank.dump.stacks
    if status == "answered" and answer and not any(t.training for t in answer.threads):
        return "its training thread has ended"
    if status == "ended":
        return f"its process has ended ({rank.bye.state if rank.bye else ''})"
    return {"awaited": "asked, no answer yet", "unasked": "not asked yet"}.get(status, "")
