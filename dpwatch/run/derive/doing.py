"""Describes what a rank that others wait for is doing, and how severe that is.

It is derived from the rank's last heartbeat. Some pauses end by themselves: writing a checkpoint to
a slow disk, reading a dataset, waiting for a process. So each kind has a time limit before it is
critical, and a pause as long as one that the run has recovered from is only a note.
"""

from __future__ import annotations

import math

import msgspec

from dpwatch.run.derive.wait_graph import is_silent, is_stale
from dpwatch.run.model.snapshot import SEVERITIES
from dpwatch.run.state.endings import FINISHED, STOPPED, ending
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Beat

STILL_NS = 2_000_000_000
"""A thread that has been at one line for this long is stuck there."""

LIMITS_S = {
    "lock": 8.0,
    "socket": 20.0,
    "pipe": 20.0,
    "poll": 20.0,
    "file": 20.0,
    "core": 20.0,
    "sleep": 30.0,
    "disk": 60.0,
    "process": 60.0,
}
"""Seconds in one kind of wait before it is critical."""

LOADER_LIMIT_S = 8.0
"""The same limit for a data loader."""

CHECKPOINT_LIMIT_S = 120.0
"""The same limit for writing and reading checkpoints."""

NATIVE_LIMIT_S = 20.0
"""The same limit for silent native code that holds the GIL."""

BUSY_LIMIT_S = 120.0
"""The same limit for running Python code."""

STARTING_LIMIT_S = 60.0
"""Time for ranks to start while others already wait for them."""

OVERCOME = 1.25
"""A pause of up to this many times the longest past one is only worth a note."""

FIRST_STEPS = 3
"""First steps, whose length says nothing about pauses: they allocate and compile."""

CHECKPOINTS = ("torch.save", "torch.load", "checkpoint")
LOADER = "DataLoader"
PROMPTS = {"prompt": "at a prompt", "pdb": "at pdb's prompt"}

_PHRASES = {
    "sleep": "asleep",
    "lock": "waiting for a lock",
    "disk": "waiting for a disk or network file system (in the kernel)",
    "file": "waiting for a file",
    "pipe": "waiting on a pipe",
    "socket": "waiting on a socket",
    "poll": "waiting for input",
    "process": "waiting for a process",
    "core": "on a core, in native code",
}


class Doing(msgspec.Struct, frozen=True):
    """What one rank is doing.

    Attributes:
        what: `still`, `busy`, `silent`, `unseen`, `stale`, or how it ended.
        text: A sentence that describes it, with its location.
        advice: What to do first, "" if there is no specific advice.
        limit_s: Seconds before it is critical.
        passes: Whether it may end by itself, as earlier pauses did.
    """

    what: str
    text: str
    advice: str = ""
    limit_s: float = 0.0
    passes: bool = False


def doing(state: RunState, r: int) -> Doing:
    """What a rank is doing now, or what it did before it was stopped or gave up."""
    rank = state.ranks.get(r)
    if rank is None or (rank.beat is None and rank.bye is None):
        text = f"Rank {r} has not reported."
        limit_s = 0.0 if _has_begun(state) else STARTING_LIMIT_S
        return Doing("unseen", text, "Check that its process was started.", limit_s)
    how = ending(rank)
    if how == FINISHED:
        return _finished(rank)
    if rank.bye is not None and (how != STOPPED or rank.beat is None):
        return Doing(rank.bye.state, f"Rank {r} has {rank.bye.state}.")
    quiet_s = (state.now_ns - rank.seen_ns) / 1e9
    if is_stale(state, rank):
        text = f"Rank {r} is on {rank.host}, which has not reported for {quiet_s:.0f} s."
        return Doing("stale", text, "The host is down, or the network to it.")
    if is_silent(state, rank):
        return _silent(rank, quiet_s)
    beat = rank.beat
    if beat is None:  # a goodbye without any heartbeat
        return Doing("unseen", f"Rank {r} has not reported.")
    return _still(rank, beat) if (beat.still_ns or 0) >= STILL_NS else _busy(rank, beat)


def severity(state: RunState, each: Doing, stuck_s: float) -> str:
    """Severity (one of `SEVERITIES`) of a rank's doing this for `stuck_s` seconds."""
    if each.passes and stuck_s < OVERCOME * longest_pause_s(state):
        return SEVERITIES[0]
    return SEVERITIES[2 if stuck_s >= each.limit_s else 1]


def longest_pause_s(state: RunState) -> float:
    """Longest step of any rank after `FIRST_STEPS`, in seconds; a step includes all pauses."""
    longest_ms = 0.0
    for rank in state.ranks.values():
        lane = rank.lanes.get(0)
        if lane is not None:
            curve = zip(lane.step_ms.steps, lane.step_ms.values, strict=True)
            longest_ms = max([longest_ms, *(ms for step, ms in curve if step >= FIRST_STEPS)])
    return longest_ms / 1e3


def _has_begun(state: RunState) -> bool:
    return any(rank.steps_done for rank in state.ranks.values())


def _finished(rank: RankState) -> Doing:
    advice = (
        "Look for what only it does: fewer batches in its share of the data, a stop decided by its "
        "own metric, a step or call it skipped."
    )
    return Doing(FINISHED, f"Rank {rank.rank} has finished.", advice)


def _silent(rank: RankState, quiet_s: float) -> Doing:
    who = f"Rank {rank.rank} (pid {rank.pid}) has been silent for {quiet_s:.0f} s"
    where = f", last seen at {rank.beat.where}" if rank.beat and rank.beat.where else ""
    match rank.process:
        case "T" | "t":
            text = f"{who}: it is stopped by a signal or a debugger{where}."
            return Doing("silent", text, f"`kill -CONT {rank.pid}` resumes it.")
        case "R" | "D" | "S":
            text = f"{who}: a native call holds the GIL{where}."
            advice = f"`py-spy dump --native --pid {rank.pid}` shows which."
            return Doing("silent", text, advice, NATIVE_LIMIT_S, passes=True)
    text = f"{who}: stopped, swapped out, or in a native call that holds the GIL{where}."
    return Doing("silent", text)


def _still(rank: RankState, beat: Beat) -> Doing:
    who, at = f"Rank {rank.rank} (pid {rank.pid})", f" at {beat.where}" if beat.where else ""
    if beat.inside == LOADER or beat.phase == "data":
        return _waits_for_data(who, at, beat)
    if beat.inside in PROMPTS:
        prompt = PROMPTS[beat.inside]
        text = f"{who} is {prompt}: it waits for someone to enter the next line or cell."
        return Doing("still", text, "", math.inf, passes=True)
    inside = f" inside {beat.inside}" if beat.inside else ""
    phrase = beat.waits_on or _PHRASES.get(beat.waits_in, "")
    text = f"{who} is stuck{at}{inside}{f', {phrase}' if phrase else ''}."
    if not beat.waits_in:
        return Doing("still", text)
    limit_s = LIMITS_S.get(beat.waits_in, 0.0)
    if beat.inside.startswith(CHECKPOINTS):
        limit_s = CHECKPOINT_LIMIT_S
    return Doing("still", text, "", limit_s, passes=True)


def _waits_for_data(who: str, at: str, beat: Beat) -> Doing:
    worker = f": {beat.waits_on}" if beat.waits_on else ""
    text = f"{who} waits for a batch from its DataLoader{at}{worker}."
    advice = (
        "Check the loader's worker processes (`py-spy dump`): a lock that was held when they were "
        "forked, a file or server that does not answer, or full shared memory."
    )
    return Doing("still", text, advice, LOADER_LIMIT_S if beat.waits_in else 0.0, passes=True)


def _busy(rank: RankState, beat: Beat) -> Doing:
    at = f" at {beat.where}" if beat.where else ""
    text = f"Rank {rank.rank} (pid {rank.pid}) is busy{at}."
    return Doing("busy", text, "", BUSY_LIMIT_S, passes=beat.still_ns is not None)
