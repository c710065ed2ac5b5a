"""Classifies how ranks ended, and finds the one that the others followed.

When a run fails, most of its ranks end because another one ended or got stuck. An end is one of

- *own*: the script raised an error;
- *quit*: the process exited with a code but no error, like scripts that catch and print errors;
- *killed*: by a signal that is not used to end training, or the process vanished;
- *aborted*: by SIGABRT, which native libraries raise on internal errors and on lost peers;
- *gave up*: a collective, or the rendezvous before the first one, timed out or lost its peer;
- *stopped*: from outside, by SIGTERM, SIGINT or SIGHUP, as launchers stop the remaining ranks.

A rank that gave up or was stopped is never the cause of other ends. If it is known why some ranks
gave up, those that quit or aborted count as having given up too.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from dpwatch.run.state.parts import RankState
from dpwatch.wire.messages import INTERRUPTED

FINISHED, OWN, QUIT, KILLED, ABORTED, GAVE_UP, STOPPED = (
    "finished",
    "own",
    "quit",
    "killed",
    "aborted",
    "gave up",
    "stopped",
)

BY_ITSELF = (OWN, QUIT, KILLED, ABORTED)
"""Ends that need no other rank as an explanation."""

MAYBE_GAVE_UP = (QUIT, ABORTED)
"""Those of `BY_ITSELF` that another rank may have caused."""

_ORDER = {OWN: 0, KILLED: 0, QUIT: 1, ABORTED: 1, GAVE_UP: 2, STOPPED: 3}
"""Lower means more likely to be the cause of the other ends."""

_STOPS = frozenset((-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP))

LAUNCHER_NS = 1_000_000_000
"""A process that vanishes this long after another rank gave up was probably stopped by its
launcher, which may reap it before its exit is read. If the cause is known, no delay is needed."""

_LIBRARYS = re.compile(
    r"^(?:torch\.distributed\.)?Dist(?:Backend|Network|Store|QueueEmpty)?Error\b"
    r"|\bgloo(?:/|::)"
    r"|^(?!\w*(?:Connection|Pipe|OS|Timeout|IO|URL|HTTP)\w*Error\b).*connection (?:closed|reset) by"
    r"|^RuntimeError: .*(?:Socket Timeout|Broken pipe|TCPStore|store->|wait timeout after)"
    r"|^RuntimeError: .*(?:monitoredBarrier|failed to recv)"
    r"|Timed out waiting \d+ ?ms for|Application timeout caused pair closure"
    r"|NCCL (?:error|communicator)|ncclRemoteError|Watchdog caught collective"
    r"|ran for \d+ milliseconds before timing out|The client socket has timed out",
    re.DOTALL | re.IGNORECASE,
)
"""Errors of torch.distributed and its backends for a collective that failed."""

_EXIT_CODE = re.compile(r"^exit code -?\d+(?:: )?")
_NO_ERROR = re.compile(r"^(?:process \d+ exited without reporting)?$")
_KILLED = "killed by "
"""Prefixes of a reason that describe the exit; the error in flight follows, if there was one."""

_MISTAKES = re.compile(
    r"ncclInvalid|Duplicate GPU|unhandled cuda error|address already in use|EADDRINUSE", re.I
)
"""Those of them that the rank itself caused."""


def last_step(rank: RankState) -> int | None:
    """The step that a rank is in, or was in when it ended; None if unknown."""
    if rank.bye is not None and rank.bye.step is not None:
        return rank.bye.step
    return None if rank.beat is None else rank.beat.step


def ending(rank: RankState) -> str | None:
    """How a rank ended, None while it runs."""
    bye = rank.bye
    if bye is None:
        return None
    if bye.state == "finished":
        return FINISHED
    if bye.exit in _STOPS or bye.reason == INTERRUPTED:
        return STOPPED
    reason = _EXIT_CODE.sub("", bye.reason)
    if bye.state == "failed" and not bye.reason.startswith(_KILLED):
        if _LIBRARYS.search(reason) and not _MISTAKES.search(reason):
            return GAVE_UP
        return QUIT if _NO_ERROR.match(reason) else OWN
    if bye.exit is None or bye.exit < 0:
        return ABORTED if bye.exit == -signal.SIGABRT else KILLED
    return QUIT


def ends(ranks: Iterable[RankState], *, explained: bool = False) -> list[tuple[RankState, str]]:
    """Ranks that ended without finishing, and how; the most likely cause comes first.

    Args:
        ranks: All ranks.
        explained: Whether it is known why some gave up.
    """
    found = [(rank, how) for rank in ranks if (how := ending(rank)) not in (None, FINISHED) and how]
    if explained:
        found = [(rank, GAVE_UP if how in MAYBE_GAVE_UP else how) for rank, how in found]
    grace_ns = 0 if explained else LAUNCHER_NS
    gave_up_ns = min((rank.ended_ns for rank, how in found if how == GAVE_UP), default=None)
    late = {
        rank.rank for rank, how in found if how == KILLED and _is_late(rank, gave_up_ns, grace_ns)
    }
    found = [(rank, STOPPED if rank.rank in late else how) for rank, how in found]
    return sorted(found, key=lambda end: (_ORDER[end[1]], end[0].ended_ns))


def _is_late(rank: RankState, gave_up_ns: int | None, grace_ns: int) -> bool:
    """Whether it vanished well after another one gave up."""
    unknown = rank.bye is not None and rank.bye.exit is None
    return unknown and gave_up_ns is not None and rank.ended_ns - gave_up_ns >= grace_ns
