"""Records about collectives; `messages` has the others and the rules for all."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges as r
from dpwatch.wire.record import Record

MESSAGES = frozenset({"send", "recv"})
"""Point-to-point ops, which are not part of a group's sequence."""


class Collective(Record, frozen=True, gc=False, tag="collective"):
    """One collective operation as one rank saw it.

    Attributes:
        step: The step it was issued in.
        op: c10d's name: `all_reduce`, `all_gather`, `reduce_scatter`, `broadcast`, ….
        group: Name of the process group; `default` for the world.
        ranks: Size of the group.
        seq: Sequence number of this group's collectives on this rank, from 0; calls with equal
            numbers belong together.
        nbytes: Payload this rank passes in (for all_gather: its own part).
        issued_ns: When the rank entered the call.
        completed_ns: When it completed, None if not sampled or unknown.
        blocked_ns: How long it blocked the caller, in the call and in `wait`; None if unknown
            (CUDA).
        device: The device whose thread issued it.
        dtype: Element type of the payload.
        phase: Phase the thread was in, "" between phases and if not recorded.
        into_ns: Time the thread had spent in that phase.
        where: `file:line` of the script (not of torch) that issued it, "" if unknown.
        is_async: Whether the caller got a `Work` to wait for later; None for calls from C++.
        nbytes_out: Payload it receives (for all_gather: all parts).
        generation: How many groups of this name the process had before this one. Each generation
            numbers its calls from 0.
        peer: Rank of the other end of a point-to-point call (`send`, `recv`); None if unknown and
            for collectives. For these calls `seq` counts calls of that op in the group, `ranks` is
            1, and the number matches no call of another rank.
    """

    step: r.Step
    op: r.Word
    group: r.Word
    ranks: r.Ranks
    seq: r.Seq
    nbytes: r.Payload
    issued_ns: r.Instant
    completed_ns: r.Instant | None = None
    blocked_ns: r.Duration | None = None
    dtype: r.Word = ""
    device: r.Index = 0
    phase: r.Word = ""
    into_ns: r.Duration | None = None
    where: r.Line = ""
    is_async: bool | None = None
    nbytes_out: r.Bytes | None = None
    generation: r.Seq = 0
    peer: r.RankNumber | None = None


class Duration(Record, frozen=True, tag="duration"):
    """How long a collective took, if that became known only after its `Collective` was sent.

    Sent at most once per call, and only for calls whose `Collective.completed_ns` is None: NCCL
    calls, and calls still in progress when their record was sent.

    Attributes:
        step: This and the fields up to `nbytes` are those of the call's `Collective`.
        duration_ns: On a CUDA device, from when its stream reached the call until it was done:
            waiting for other ranks counts, waiting behind other kernels does not. On the host, from
            issue to completion; None if only `blocked_ns` is known.
        device: The device whose thread issued it.
        completed_ns: When it completed; None if only its duration is known (NCCL).
        blocked_ns: As in `Collective`.
    """

    step: r.Step
    op: r.Word
    group: r.Word
    ranks: r.Ranks
    seq: r.Seq
    nbytes: r.Payload
    duration_ns: r.Duration | None
    device: r.Index = 0
    completed_ns: r.Instant | None = None
    blocked_ns: r.Duration | None = None


class Unfinished(msgspec.Struct, array_like=True, frozen=True):
    """A call that a rank has entered and that is not known to be complete; see `Position`."""

    seq: r.Seq
    op: r.Word
    nbytes: r.Payload
    dtype: r.Word
    issued_ns: r.Instant
    step: r.Step
    where: r.Line = ""


class Position(msgspec.Struct, array_like=True, frozen=True):
    """A rank's progress in one process group: its newest call and the oldest one in progress.

    The fields up to `where` describe the newest call, the last collective the rank entered.

    Attributes:
        done: Whether it is known to be complete. False if it is in progress or its completion
            cannot be observed.
        members: Ranks of the group; empty for the world and for groups of more than 64.
        generation: As in `Collective`.
        oldest: The first call not known to be complete, None if there is none before the newest.
            Where completion is not observed (calls from C++ in skipped steps, CUDA) it is the first
            call of the step: earlier calls are complete, later ones may be.
    """

    group: r.Word
    ranks: r.Ranks
    seq: r.Seq
    op: r.Word
    nbytes: r.Payload
    dtype: r.Word
    issued_ns: r.Instant
    step: r.Step
    done: bool
    where: r.Line = ""
    members: Annotated[list[r.RankNumber], Meta(max_length=64)] = []
    generation: r.Seq = 0
    oldest: Unfinished | None = None


class Issuer(msgspec.Struct, array_like=True, frozen=True):
    """The collectives of one kind that one function of a framework has issued so far.

    Only the first rank of the group reports it, about its own calls.

    Attributes:
        framework: The framework's name in `probe.stack.frameworks`, else the package's name.
        function: Import path of the function.
        purpose: What the calls are for, in a few words; "" if unknown.
        op: This and the fields up to `dtype` are as in `Collective`.
        calls: Number of calls.
        nbytes: Payload the rank passed in, summed over the calls.
        first_step: Step of the first call.
        last_step: Step of the last call.
        steps: Number of steps whose calls, by any issuer, had been counted by then.
    """

    framework: r.Word
    function: r.Word
    purpose: r.Word
    op: r.Word
    group: r.Word
    ranks: r.Ranks
    dtype: r.Word
    calls: r.Count
    nbytes: r.Count
    first_step: r.Step
    last_step: r.Step
    steps: r.Step
