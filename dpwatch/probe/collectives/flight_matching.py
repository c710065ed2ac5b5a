"""Decodes torch's flight recorder, and matches its entries to the calls that the probe observed.

An entry is created inside the call, on the caller's thread. So its creation time (wall clock) lies
between the moments when the call was issued and when it returned. Together with the group's name,
the op and the bytes that identifies the call. If no call or several calls match, or two entries
match the same call, nothing is reported rather than guessed.

The format is that of torch/csrc/distributed/c10d/FlightRecorderDetail.hpp (`dump_json`), 2.x.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

SLACK_NS = 1_000
"""Accuracy of the mapping between the two clocks."""

_OVERLAPPING = 4
"""Calls before an entry that are checked; only calls of several threads overlap."""

_OPS = {
    "all_reduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "all_gather": "all_gather",
    "_all_gather_base": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "gather": "gather",
    "scatter": "scatter",
    "all_to_all": "all_to_all",
}
"""ProcessGroupNCCL's op names, as in records. Missing ones have no call of their own (parts of a
coalesced one) or are timed otherwise (a barrier, whose caller waits)."""

_BYTES = {
    **dict.fromkeys(("Bool", "Byte", "Char", "Float8_e5m2", "Float8_e4m3fn"), 1),
    **dict.fromkeys(("Float8_e5m2fnuz", "Float8_e4m3fnuz", "Float8_e8m0fnu"), 1),
    **dict.fromkeys(("Short", "UInt16", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "UInt32", "Float", "ComplexHalf"), 4),
    **dict.fromkeys(("Long", "UInt64", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""Bytes per element, by torch's C++ name of the type."""


class ReturnedCall(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a call: when it was in progress (monotonic clock), and its record's fields.

    Attributes:
        uid: c10d's own name of the group.
        group: The group's name in records.
    """

    issued_ns: int
    returned_ns: int
    uid: str
    op: str
    nbytes: int
    step: int
    group: str
    ranks: int
    seq: int
    device: int


class FlightEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the recorder, which has more fields than these.

    Attributes:
        process_group: c10d's name of the group, and its description.
        profiling_name: `nccl:all_reduce` and the like.
        time_created_ns: Wall clock.
        duration_ms: Time on the device, None as long as unknown.
    """

    record_id: int
    process_group: tuple[str, str]
    profiling_name: str
    time_created_ns: int
    input_sizes: list[list[int]]
    input_dtypes: list[str]
    is_p2p: bool
    duration_ms: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the entry; record ids alone restart when a recorder is reset."""
        return self.record_id, self.time_created_ns

    @property
    def nbytes(self) -> int | None:
        """Bytes of its inputs, None if an element type is unknown here."""
        total = 0
        for sizes, dtype in zip(self.input_sizes, self.input_dtypes, strict=True):
            if dtype not in _BYTES:
                return None
            total += math.prod(sizes) * _BYTES[dtype]
        return total


class _Dump(msgspec.Struct):
    version: str
    entries: list[FlightEntry] = []


_decoder = msgspec.json.Decoder(_Dump)


def decode(dump: bytes) -> list[FlightEntry]:
    """Decodes the entries of a JSON dump, oldest first.

    Raises:
        ValueError: The format is unknown.
    """
    told = _decoder.decode(dump)
    if told.version.partition(".")[0] != "2":
        raise ValueError(f"the flight recorder's format is {told.version}, known is 2")
    return told.entries


class EntryMatcher:
    """Matches entries to calls, dump after dump; reports each entry once."""

    def __init__(self) -> None:
        self._done: set[tuple[int, int]] = set()

    def discard(self, entries: Iterable[FlightEntry]) -> None:
        """Marks these entries as handled: they cannot be matched."""
        self._done = {entry.key for entry in entries}

    def durations(
        self, entries: list[FlightEntry], calls: Iterable[ReturnedCall], wall_less_mono_ns: int
    ) -> list[tuple[ReturnedCall, int]]:
        """Calls whose duration has become known.

        Args:
            entries: All entries of a dump.
            calls: The most recent calls that have returned.
            wall_less_mono_ns: The wall clock minus the monotonic one.

        Returns:
            Each call with its time on the device, in nanoseconds.
        """
        index = _Index(calls)
        matches = {
            entry.key: index.at(entry, entry.time_created_ns - wall_less_mono_ns)
            for entry in entries
            if entry.key not in self._done
        }
        claims = Counter(call for found in matches.values() for call in found)
        told = []
        for entry in entries:
            found = matches.get(entry.key)
            if found is None:
                continue
            if len(found) > 1 or any(claims[call] > 1 for call in found):
                self._done.add(entry.key)  # for good: later it might look unambiguous
            elif entry.duration_ms is not None:
                self._done.add(entry.key)
                if found and math.isfinite(entry.duration_ms) and entry.duration_ms >= 0:
                    told.append((found[0], round(entry.duration_ms * 1e6)))
        self._done &= {entry.key for entry in entries}
        return told


class _Index:
    """Calls by group, op and bytes, in the order they were issued."""

    def __init__(self, calls: Iterable[ReturnedCall]) -> None:
        self._calls: defaultdict[tuple[str, str, int], list[ReturnedCall]] = defaultdict(list)
        for call in sorted(calls, key=lambda call: call.issued_ns):
            self._calls[call.uid, call.op, call.nbytes].append(call)

    def at(self, entry: FlightEntry, mono_ns: int) -> list[ReturnedCall]:
        """Calls that match an entry and were in progress when it was created."""
        backend, _, name = entry.profiling_name.partition(":")
        nbytes = entry.nbytes
        if entry.is_p2p or backend != "nccl" or name not in _OPS or nbytes is None:
            return []
        alike = self._calls.get((entry.process_group[0], _OPS[name], nbytes), [])
        after = bisect_right(alike, mono_ns + SLACK_NS, key=lambda call: call.issued_ns)
        before = alike[max(0, after - _OVERLAPPING) : after]
        return [call for call in before if call.returned_ns + SLACK_NS >= mono_ns]
