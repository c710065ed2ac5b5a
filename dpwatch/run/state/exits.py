"""A rank's end: its own goodbye, and what the operating system says of its process.

A goodbye is only as good as what the process does after it: a rank may say `finished` and leave by
`sys.exit(1)`, or be killed. So the exit code, where the hub could read it, has the last word.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from dpwatch.run.state.parts import RankState
from dpwatch.wire.messages import INTERRUPTED, Bye, Command

SIGNAL_NS = 500_000_000
"""How long before Ctrl-C is noticed a rank may have ended of it."""

APART = ("next", "idle")
"""What a process may have turned to, so that its exit says nothing of the run (`Bye.then`)."""


def seen(pid: int, code: int | None, step: int | None = None) -> Bye:
    """A process's end as its hub saw it.

    Args:
        pid: The process.
        code: Its exit code, or minus the signal that killed it; None where that can't be told.
        step: The step it was in, None where that isn't known.
    """
    if code is None:
        return Bye("lost", f"process {pid} exited without reporting", step=step)
    if code < 0:
        return Bye("lost", f"process {pid} was killed by {signal_name(-code)}", code, step=step)
    if code:
        why = f"exit code {code}: process {pid} exited without reporting"
        return Bye("failed", why, code, step=step)
    return Bye("finished", "", 0, step=step)


def joined(own: Bye | None, seen: Bye | None, worker: str = "") -> Bye | None:
    """What a rank's end comes to.

    Args:
        own: Its goodbye, None if it said none.
        seen: Its process's end, None while it runs.
        worker: See `Hello.worker`.
    """
    code = None if seen is None else seen.exit
    if own is None:
        ended_by_pool = worker and code == -signal.SIGTERM
        return Bye("finished", "", code, "idle") if ended_by_pool else seen
    if code is None:  # it runs, or the hub can't see the process, which has spoken for itself
        return own
    if own.state == "failed" or own.then in APART:
        return Bye(own.state, own.reason, code, own.then)
    if code == -signal.SIGTERM and own.state == "finished" and (worker or own.then != "exit"):
        return Bye("finished", "", code, own.then)
    if code == 0:
        return Bye("finished", "", 0)
    if code > 0:
        return Bye("failed", f"exit code {code}", code)
    return Bye("failed", f"killed by {signal_name(-code)} after its goodbye", code)


def may_have_failed(bye: Bye) -> bool:
    """Whether a rank may have ended badly that said `finished`, and nobody has seen it."""
    return bye.then == "idle" or (bye.exit is None and bye.then != "next")


def was_stopped(rank: RankState, command: Command | None) -> bool:
    """Whether Ctrl-C ended a rank: its own signal, or what the launcher made of that."""
    if rank.bye is None:
        return False
    if rank.bye.reason == INTERRUPTED or rank.bye.exit == -signal.SIGINT:
        return True
    at = None if command is None else command.interrupted_ns
    return at is not None and rank.ended_ns >= at - SIGNAL_NS


def gave_way(ranks: Iterable[RankState], command: Command | None) -> bool:
    """Whether all ranks have ended well since Ctrl-C, and the command hasn't: as mp.spawn's do."""
    if command is None or command.exit in (None, 0) or command.interrupted_ns is None:
        return False
    return all(was_stopped(rank, command) for rank in ranks)


def signal_name(number: int) -> str:
    """A signal as people write it: `SIGKILL`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
