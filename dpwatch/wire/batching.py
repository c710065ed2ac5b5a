"""A frame's records in as few as can be, since each costs its hub, and one by one again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dpwatch.wire import calls, steps
from dpwatch.wire.messages import AnyRecord, Calls, Collective, Step, Steps


def pack(records: Sequence[AnyRecord]) -> list[AnyRecord]:
    """Collectives as `Calls` and steps as `Steps`, these first, and the rest as it is."""
    collectives = [each for each in records if isinstance(each, Collective)]
    ended = [each for each in records if isinstance(each, Step)]
    others = [each for each in records if not isinstance(each, Collective | Step)]
    return [*calls.pack(collectives), *steps.pack(ended), *others]


def unpack(records: Iterable[AnyRecord]) -> Iterator[AnyRecord]:
    """What a rank has told of in these records, each by itself."""
    for record in records:
        if isinstance(record, Calls):
            yield from calls.unpack(record)
        elif isinstance(record, Steps):
            yield from steps.unpack(record)
        else:
            yield record


def count_records(records: Sequence[AnyRecord]) -> int:
    """How many records a rank has told of in these."""
    count = len(records)
    for each in records:
        if type(each) is Calls or type(each) is Steps:
            count += each.count - 1
    return count
