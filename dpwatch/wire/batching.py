"""Packs a frame's records into as few records as possible, which the hub decodes faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dpwatch.wire import calls, steps
from dpwatch.wire.messages import AnyRecord, Calls, Collective, Step, Steps


def pack(records: Sequence[AnyRecord]) -> list[AnyRecord]:
    """Packs collectives into `Calls` and steps into `Steps`; other records follow unchanged."""
    collectives = [each for each in records if isinstance(each, Collective)]
    ended = [each for each in records if isinstance(each, Step)]
    others = [each for each in records if not isinstance(each, Collective | Step)]
    return [*calls.pack(collectives), *steps.pack(ended), *others]


def unpack(records: Iterable[AnyRecord]) -> Iterator[AnyRecord]:
    """Yields every record on its own, with `Calls` and `Steps` unpacked."""
    for record in records:
        if isinstance(record, Calls):
            yield from calls.unpack(record)
        elif isinstance(record, Steps):
            yield from steps.unpack(record)
        else:
            yield record


def count_records(records: Sequence[AnyRecord]) -> int:
    """Number of records, counting each collective or step of a packed record."""
    count = len(records)
    for each in records:
        if type(each) is Calls or type(each) is Steps:
            count += each.count - 1
    return count
