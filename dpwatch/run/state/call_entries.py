"""Converts records of collectives to a table with one column per call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpwatch.run.state.arrivals import (
    BLOCKED,
    DONE,
    INTO,
    ISSUED,
    KIND,
    RANK,
    SEQ,
    STEP,
    WIDTH,
    OpenCalls,
    packed_call,
)
from dpwatch.run.state.series import NONE
from dpwatch.wire.arrays import Ints
from dpwatch.wire.calls import ROW, UNKNOWN, Calls, CallSignature, signature_of, signatures_of
from dpwatch.wire.messages import Collective

Array = np.ndarray[Any, Any]


class Kinds:
    """The call signatures of a table, numbered in order of appearance."""

    def __init__(self, known: Sequence[CallSignature] = ()) -> None:
        self.all = list(known)
        self._numbers = {kind: number for number, kind in enumerate(self.all)}
        self._tables: dict[bytes, list[int]] = {}

    def number(self, kind: CallSignature) -> int:
        """The number of a signature, which is added if new."""
        found = self._numbers.get(kind)
        if found is None:
            found = self._numbers[kind] = len(self.all)
            self.all.append(kind)
        return found

    def table(self, kinds: bytes) -> list[int]:
        """The numbers of a record's encoded signatures."""
        found = self._tables.get(kinds)
        if found is None:
            found = self._tables[kinds] = [self.number(kind) for kind in signatures_of(kinds)]
        return found


def table_of(calls: Sequence[tuple[int, Calls | Collective]], kinds: Kinds) -> Array:
    """Table of calls, in the order of their records.

    Args:
        calls: Pairs of a rank and a record that it sent.
        kinds: Receives the signatures of these calls.

    Returns:
        int64, of shape (`WIDTH`, calls).
    """
    parts: list[Array] = []
    packed: list[tuple[int, Calls]] = []
    for rank, record in calls:
        if isinstance(record, Calls):
            packed.append((rank, record))
        else:
            parts += [_unpacked(packed, kinds), _columns([_column(rank, record, kinds)])]
            packed = []
    last = _unpacked(packed, kinds)
    return np.concatenate([*parts, last], axis=1) if parts else last


def table_of_open(calls: OpenCalls) -> Array:
    """Table of open calls, as a view of their buffer."""
    found: Array = np.frombuffer(calls.rows, np.int64).reshape(-1, WIDTH).T
    return found


def open_calls(entries: Array, kinds: Sequence[CallSignature]) -> OpenCalls:
    """Packs a table as open calls, with only the signatures that occur in it."""
    used, place = np.unique(entries[KIND], return_inverse=True)
    entries = entries.copy()
    entries[KIND] = place.reshape(-1)
    rows = Ints()
    rows.frombytes(entries.T.tobytes())
    return OpenCalls(rows, [kinds[k] for k in used.tolist()])


def call_at(column: Array, kinds: Sequence[CallSignature]) -> Collective:
    """Converts a column to a call."""
    numbers = column.tolist()
    return packed_call(kinds[numbers[KIND]], numbers[STEP:])


def _column(rank: int, call: Collective, kinds: Kinds) -> list[int]:
    times = (call.completed_ns, call.blocked_ns, call.into_ns)
    return [
        rank, kinds.number(signature_of(call)), call.step, call.seq, call.issued_ns,
        *(NONE if each is None else each for each in times),
    ]  # fmt: skip


def _columns(each: Sequence[Sequence[int]]) -> Array:
    found: Array = np.array(each, np.int64).reshape(-1, WIDTH).T
    return found


def _unpacked(calls: Sequence[tuple[int, Calls]], kinds: Kinds) -> Array:
    if not calls:
        return _columns([])
    records = [record for _, record in calls]
    of = np.repeat(np.arange(len(records)), [len(record.which) for record in records])
    numbers: list[int] = []
    offsets: dict[bytes, int] = {}
    for record in records:
        if record.kinds not in offsets:
            offsets[record.kinds] = len(numbers)
            numbers += kinds.table(record.kinds)
    which = np.frombuffer(b"".join([record.which for record in records]), np.uint8)
    rows = np.frombuffer(b"".join([record.rows for record in records]), "<u4")
    step, seq, ago, took, blocked, into = rows.reshape(-1, ROW.size // 4).T
    ended_ns = np.array([record.latest_ns for record in records])[of] - ago
    done = took != UNKNOWN
    place = np.array([offsets[record.kinds] for record in records])[of] + which
    found = np.empty((WIDTH, len(of)), np.int64)
    found[RANK] = np.array([rank for rank, _ in calls])[of]
    found[KIND] = np.array(numbers)[place]
    found[STEP] = np.array([record.step for record in records])[of] + step
    found[SEQ] = np.array([record.seq for record in records])[of] + seq
    found[ISSUED] = ended_ns - np.where(done, took, 0)
    found[DONE] = np.where(done, ended_ns, NONE)
    for row, known in ((BLOCKED, blocked), (INTO, into)):
        found[row] = known
        found[row, known == UNKNOWN] = NONE
    return found
