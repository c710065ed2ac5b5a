"""Combines a rank's own goodbye with its process's exit status.

A rank may report `finished` and then exit with `sys.exit(1)` or be killed. So the exit status
decides, where the hub could read it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from dpwatch.run.state.parts import RankState
from dpwatch.wire.messages import INTERRUPTED, Bye, Command

SIGNAL_NS = 500_000_000
"""A rank may end from Ctrl-C up to this long before `dpwatch run` reports it."""

APART = ("next", "idle")
"""Values of `Bye.then` after which the process's exit status does not concern the run."""


def observed_end(pid: int, code: int | None, step: int | None = None) -> Bye:
    """The end of a process as its hub observed it.

    Args:
        pid: The process.
        code: Its exit code, or minus the signal that killed it; None if unknown.
        step: The step it was in, None if unknown.
    """
    if code is None:
        return Bye("lost", f"process {pid} exited without reporting", step=step)
    if code < 0:
        return Bye("lost", f"process {pid} was killed by {signal_name(-code)}", code, step=step)
    if code:
        why = f"exit code {code}: process {pid} exited without reporting"
        return Bye("failed", why, code, step=step)
    return Bye("finished", "", 0, step=step)


def combine_ends(own: Bye | None, seen: Bye | None, worker: str = "") -> Bye | None:
    """Combines a rank's goodbye and its process's end.

    Args:
        own: Its goodbye, None if it sent none.
        seen: The end of its process, None while it runs.
        worker: See `Hello.worker`.
    """
    code = None if seen is None else seen.exit
    if own is None:
        ended_by_pool = worker and code == -signal.SIGTERM
        return Bye("finished", "", code, "idle") if ended_by_pool else seen
    if code is None:  # the process runs, or the hub can't observe it
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
    """Whether a rank that reported `finished` may have failed afterwards, unobserved."""
    return bye.then == "idle" or (bye.exit is None and bye.then != "next")


def was_stopped(rank: RankState, command: Command | None) -> bool:
    """Whether Ctrl-C ended a rank, by its own signal or through the launcher."""
    if rank.bye is None:
        return False
    if rank.bye.reason == INTERRUPTED or rank.bye.exit == -signal.SIGINT:
        return True
    at = None if command is None else command.interrupted_ns
    return at is not None and rank.ended_ns >= at - SIGNAL_NS


def ended_by_ctrl_c(ranks: Iterable[RankState], command: Command | None) -> bool:
    """Whether all ranks finished after Ctrl-C but the command failed, as with `mp.spawn`."""
    if command is None or command.exit in (None, 0) or command.interrupted_ns is None:
        return False
    return all(was_stopped(rank, command) for rank in ranks)


def signal_name(number: int) -> str:
    """Name of a signal, such as `SIGKILL`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
