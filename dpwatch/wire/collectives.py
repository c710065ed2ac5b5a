"""The records that tell of collectives; `messages` has the rest, and what holds for all."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges as r
from dpwatch.wire.record import Record


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


class Duration(Record, frozen=True, tag="duration"):
    """How long a collective took, where that is known only after its `Collective` has left.

    At most one a call, and only of calls whose `Collective.completed_ns` is None (NCCL's).

    Attributes:
        step: As all up to `nbytes` in the call's `Collective`.
        duration_ns: On the device: from when its stream had come to it until it was done. What it
            waited there for other ranks counts, what it waited behind other kernels does not.
        device: Whose thread issued it.
    """

    step: r.Step
    op: r.Word
    group: r.Word
    ranks: r.Ranks
    seq: r.Seq
    nbytes: r.Payload
    duration_ns: r.Duration
    device: r.Index = 0


class Position(msgspec.Struct, array_like=True, frozen=True):
    """How far a rank has come in one process group: the last collective that it entered.

    Attributes:
        done: It is known to be over. False: under way, or nobody could tell.
        members: Ranks of the group, empty for the world and for groups of over 64.
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
