"""The records that tell of collectives; `messages` has the rest, and what holds for all."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges as r
from dpwatch.wire.record import Record

MESSAGES = frozenset({"send", "recv"})
"""Ops of two ranks only, which stand in no group's sequence."""


class Collective(Record, frozen=True, gc=False, tag="collective"):
    """One collective operation as one rank saw it.

    Attributes:
        step: The step it was issued in.
        op: c10d's name: `all_reduce`, `all_gather`, `reduce_scatter`, `broadcast`, …
        group: Name of the process group; `default` for the world.
        ranks: Size of the group.
        seq: Counts this group's collectives from 0 on this rank; equal numbers belong together.
        nbytes: Payload this rank hands in (for all_gather: its own part).
        issued_ns: When the rank entered the call.
        completed_ns: When it was done, None where not sampled or not known.
        blocked_ns: How long it held the caller up, in call and wait; None where not known (CUDA).
        device: Whose thread issued it.
        dtype: Element type of the payload.
        phase: Phase that thread was in, "" between phases and where nobody looked.
        into_ns: How long it had been in that phase.
        where: `file:line` of the script (not of torch) that issued it, "" where it can't be told.
        is_async: The caller got a `Work` to wait for later; None from C++.
        nbytes_out: Payload it gets (for all_gather: all parts).
        generation: How many groups of this name the process has had before this one. Each
            generation numbers its calls from 0.
        peer: Rank of the other end of a point-to-point call (`send`, `recv`), None where it is not
            known and for collectives. `seq` then counts that op's calls in the group, `ranks` is 1,
            and no other rank's call has that number.
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
    """How long a collective took, where that is known only after its `Collective` has left.

    At most one a call, and only of calls whose `Collective.completed_ns` is None: NCCL's, and those
    that were still under way when their record left.

    Attributes:
        step: As all up to `nbytes` in the call's `Collective`.
        duration_ns: On the device: from when its stream had come to it until it was done. What it
            waited there for other ranks counts, what it waited behind other kernels does not. Of a
            call on the host: from its issue until it was done, None where only `blocked_ns` is
            known.
        device: Whose thread issued it.
        completed_ns: When it was done; None where only its length is known (NCCL).
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
    """A call that a rank has entered and that is not known to be over; as in `Position`."""

    seq: r.Seq
    op: r.Word
    nbytes: r.Payload
    dtype: r.Word
    issued_ns: r.Instant
    step: r.Step
    where: r.Line = ""


class Position(msgspec.Struct, array_like=True, frozen=True):
    """How far a rank has come in one process group: the newest and the oldest call under way.

    All fields up to `where` are those of the newest: the last collective that the rank entered.

    Attributes:
        done: It is known to be over. False: under way, or nobody could tell.
        members: Ranks of the group, empty for the world and for groups of over 64.
        generation: As in `Collective`.
        oldest: The first call that is not known to be over, None where no call before the newest
            is. Where completion is not watched (C++ calls of unsampled steps, CUDA) it is the
            step's first call, so that what came before is over and what follows may be.
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
    """What one function of a framework has issued so far of one kind of collective.

    Told by the first rank of the group only, and of its own calls.

    Attributes:
        framework: Whose function it is: a name from `probe.stack.frameworks`, else the package's.
        function: The function, as one would import it.
        purpose: What for, in a few words; "" where that is not known.
        op: As all up to `dtype` in `Collective`.
        calls: How many calls, …
        nbytes: … and the payload that the rank handed in to them, summed.
        first_step: The step of the first of them, …
        last_step: … and of the last.
        steps: Steps of which calls, anybody's, had been told by then.
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
