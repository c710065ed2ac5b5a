"""Packs many collectives into one record, at a sixth of the cost of separate `Collective`s.

What calls have in common (op, group, size, source location) is stored once; the rest is a table of
32-bit numbers, none of which can be out of range. A call that does not fit, for instance because it
took longer than four seconds, is sent as a `Collective`.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges as r
from dpwatch.wire.collectives import Collective
from dpwatch.wire.record import Record

MOST_CALLS = 256
MOST_KINDS = 64
MOST_KINDS_BYTES = 2048
"""Limits of one record: calls, signatures, and the encoded size of the signatures in bytes."""

ROW = struct.Struct("<6I")
UNKNOWN = (1 << 32) - 1
"""Marks an unknown number in a row."""

EARLIEST_NS = 2 << 32
"""Smallest valid `latest_ns`: no row can reach further back than this."""


class CallSignature(msgspec.Struct, array_like=True, frozen=True):
    """What some calls of a rank have in common; the fields are those of `Collective`."""

    op: r.Word
    group: r.Word
    ranks: r.Ranks
    nbytes: r.Payload
    dtype: r.Word
    device: r.Index
    phase: r.Word
    where: r.Line
    is_async: bool | None
    nbytes_out: r.Bytes | None
    generation: r.Seq = 0
    peer: r.RankNumber | None = None


COMMON = CallSignature.__struct_fields__
"""Fields of `Collective` that make up a call's `CallSignature`."""

NUMBERS = ("step", "seq", "issued_ns", "completed_ns", "blocked_ns", "into_ns")
"""The remaining fields, which make up its row."""

_common = operator.attrgetter(*COMMON)


def signature_of(call: Collective) -> CallSignature:
    """The `CallSignature` of a call."""
    return CallSignature(*_common(call))


def call_of(
    kind: CallSignature,
    step: int,
    seq: int,
    issued_ns: int,
    done_ns: int | None,
    blocked_ns: int | None,
    into_ns: int | None,
) -> Collective:
    """Builds the `Collective` of a signature and a row's numbers."""
    return Collective(
        step, kind.op, kind.group, kind.ranks, seq, kind.nbytes, issued_ns, done_ns, blocked_ns,
        kind.dtype, kind.device, kind.phase, into_ns, kind.where, kind.is_async, kind.nbytes_out,
        kind.generation, kind.peer,
    )  # fmt: skip


class Calls(Record, frozen=True, gc=False, tag="calls"):
    """Collectives as one rank saw them, in the order it would send them separately.

    A row is six little-endian 32-bit numbers: the call's step and `seq`, each relative to this
    record's; the time from its completion (or from its issue, if completion is unknown) to
    `latest_ns`; its duration from issue to completion; `blocked_ns`; `into_ns`. The last three may
    be unknown (2³² - 1).

    Attributes:
        step: The lowest step of the calls.
        seq: The lowest sequence number of the calls.
        latest_ns: No call was issued or completed after this.
        kinds: msgpack of a list of `CallSignature`, kept as bytes because it is usually equal to
            the previous record's and its decoding is cached.
        which: For each call, the index of its signature, one byte each.
        rows: For each call, its row.
    """

    step: r.Step
    seq: r.Seq
    latest_ns: r.Instant
    kinds: Annotated[bytes, Meta(max_length=MOST_KINDS_BYTES)]
    which: Annotated[bytes, Meta(min_length=1, max_length=MOST_CALLS)]
    rows: Annotated[bytes, Meta(max_length=MOST_CALLS * ROW.size)]

    @property
    def count(self) -> int:
        """Number of calls."""
        return len(self.which)


_HEAD = b"\xdc\0\0"
"""Header of a msgpack array; its length is filled in later."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(
    Annotated[tuple[CallSignature, ...], Meta(min_length=1, max_length=MOST_KINDS)]
)


@functools.lru_cache(maxsize=1024)
def signatures_of(kinds: bytes) -> tuple[CallSignature, ...]:
    """Decodes `Calls.kinds`.

    Raises:
        msgspec.MsgspecError, RecursionError, UnicodeDecodeError: The bytes are invalid.
    """
    decoded: tuple[CallSignature, ...] = _decoder.decode(kinds)
    return decoded


def encoded(kinds: Sequence[CallSignature]) -> bytes:
    """Encodes signatures as in `Calls.kinds`, without a size limit."""
    return _encoder.encode(kinds)


def fault(calls: Calls, latest_ns: int) -> str:
    """What is wrong with a record, "" if it is valid."""
    if len(calls.rows) != ROW.size * len(calls.which):
        return "have not a row each"
    try:
        kinds = signatures_of(calls.kinds)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "are of kinds that do not decode"
    if max(calls.which) >= len(kinds):
        return "are of a kind that is not told"
    if calls.latest_ns > latest_ns:
        return "end in the future"
    return "lie too far back" if calls.latest_ns < EARLIEST_NS else ""


def unpack(
    calls: Calls, wanted: Callable[[CallSignature, int], bool] = lambda kind, seq: True
) -> Iterator[Collective]:
    """Yields each call as a `Collective`; only those `wanted`, by kind and `seq`."""
    kinds = signatures_of(calls.kinds)
    for which, row in zip(calls.which, ROW.iter_unpack(calls.rows), strict=True):
        if wanted(kinds[which], calls.seq + row[1]):
            yield _one(calls, kinds[which], row)


def _one(calls: Calls, kind: CallSignature, row: tuple[int, ...]) -> Collective:
    step, seq, ago, took, blocked, into = row
    ended_ns = calls.latest_ns - ago
    done = took != UNKNOWN
    return call_of(
        kind,
        calls.step + step,
        calls.seq + seq,
        ended_ns - took if done else ended_ns,
        ended_ns if done else None,
        None if blocked == UNKNOWN else blocked,
        None if into == UNKNOWN else into,
    )


def pack(calls: Sequence[Collective]) -> list[Calls | Collective]:
    """Packs calls into as few records as possible, up to `MOST_CALLS` in each.

    Keeps their order, except that calls which do not fit come last.
    """
    if len(calls) < 2:
        return list(calls)
    alike = _pack_columns(calls) if len(calls) <= MOST_CALLS else None
    if alike is not None:
        return [alike]
    table = _Table(
        min([call.step for call in calls]),
        min([call.seq for call in calls]),
        max([max(call.issued_ns, call.completed_ns or 0) for call in calls]),
    )
    alone = [call for call in calls if not table.takes(call)]
    table.end()
    return [*table.ended, *alone]


def _pack_columns(calls: Sequence[Collective]) -> Calls | None:
    """Packs all calls into one record, column by column; about 0.5 µs a call.

    Returns:
        None if some do not fit, or not into one record.
    """
    columns = dict(
        zip(
            Collective.__struct_fields__,
            zip(*map(msgspec.structs.astuple, calls), strict=True),
            strict=True,
        )
    )
    step, seq, issued, done, blocked, into = (columns[name] for name in NUMBERS)
    each = list(zip(*(columns[name] for name in COMMON), strict=True))
    places = {kind: place for place, kind in enumerate(dict.fromkeys(each))}
    kinds = _encoded(tuple(places)) if len(places) <= MOST_KINDS else None
    latest_ns = max(max(issued), max(filter(None, done), default=0))
    if kinds is None or latest_ns < EARLIEST_NS:
        return None
    least, first = min(step), min(seq)
    ended = (
        done
        if None not in done
        else [i if d is None else d for i, d in zip(issued, done, strict=True)]
    )
    took = [e - i for e, i in zip(ended, issued, strict=True)]
    if None in done:
        took = [UNKNOWN if d is None else t for d, t in zip(done, took, strict=True)]
    if took.count(UNKNOWN) != done.count(None) or UNKNOWN in blocked or UNKNOWN in into:
        return None
    rows = zip(
        [n - least for n in step],
        [n - first for n in seq],
        [latest_ns - ns for ns in ended],
        took,
        encode_unknown(blocked),
        encode_unknown(into),
        strict=True,
    )
    try:
        packed = struct.pack(f"<{6 * len(calls)}I", *chain.from_iterable(rows))
    except struct.error:  # a number of more than 32 bits, or below 0
        return None
    return Calls(least, first, latest_ns, kinds, bytes(map(places.__getitem__, each)), packed)


def encode_unknown(numbers: Sequence[int | None]) -> Sequence[int]:
    """Replaces None by `UNKNOWN`."""
    return [UNKNOWN if number is None else number for number in numbers]


@functools.lru_cache(maxsize=64)
def _encoded(kinds: tuple[tuple[object, ...], ...]) -> bytes | None:
    """Encodes `Calls.kinds`; None if it is too long."""
    found = _encoder.encode([CallSignature(*kind) for kind in kinds])  # type: ignore[arg-type]
    return found if len(found) <= MOST_KINDS_BYTES else None


class _Table:
    """Builds `Calls` records call by call; finished ones are in `ended`."""

    def __init__(self, step: int, seq: int, latest_ns: int) -> None:
        self.step, self.seq, self.latest_ns = step, seq, latest_ns
        self.ended: list[Calls] = []
        self._begin()

    def _begin(self) -> None:
        self._places: dict[tuple[object, ...], int] = {}
        self._kinds = bytearray(_HEAD)
        self._which, self._rows = bytearray(), bytearray()

    def takes(self, call: Collective) -> bool:
        """Adds a call. Returns: whether its numbers fit."""
        row = _row(call, self.step, self.seq, self.latest_ns)
        if row is None:
            return False
        if len(self._which) == MOST_CALLS:
            self.end()
        key = _common(call)
        place = self._places.get(key)
        if place is None and (place := self._new(key)) is None:
            return False
        self._which.append(place)
        self._rows += row
        return True

    def _new(self, key: tuple[object, ...]) -> int | None:
        kind = _encoder.encode(CallSignature(*key))  # type: ignore[arg-type]
        if len(_HEAD) + len(kind) > MOST_KINDS_BYTES:
            return None
        full = len(self._places) == MOST_KINDS
        if full or len(self._kinds) + len(kind) > MOST_KINDS_BYTES:
            self.end()
        self._kinds += kind
        place = self._places[key] = len(self._places)
        return place

    def end(self) -> None:
        """Finishes the record in progress."""
        if self._which:
            self._kinds[1:3] = len(self._places).to_bytes(2, "big")
            told = bytes(self._kinds), bytes(self._which), bytes(self._rows)
            self.ended.append(Calls(self.step, self.seq, self.latest_ns, *told))
        self._begin()


def _row(call: Collective, step: int, seq: int, latest_ns: int) -> bytes | None:
    """The row of a call, None if it does not fit."""
    done_ns = call.completed_ns
    took = UNKNOWN if done_ns is None else done_ns - call.issued_ns
    ago = latest_ns - (call.issued_ns if done_ns is None else done_ns)
    blocked = UNKNOWN if call.blocked_ns is None else call.blocked_ns
    into = UNKNOWN if call.into_ns is None else call.into_ns
    if latest_ns < EARLIEST_NS or (took, blocked, into).count(UNKNOWN) != (
        (done_ns, call.blocked_ns, call.into_ns).count(None)
    ):
        return None
    try:
        return ROW.pack(call.step - step, call.seq - seq, ago, took, blocked, into)
    except struct.error:  # a number of more than 32 bits, or below 0
        return None
