"""What the fields of a record must say of each other; each alone is bounded by its type (`ranges`).

A table, a line a kind of record, so that a new kind is easily added. A clock says what has been:
no record tells of a time after the frame that it came in was made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpwatch.wire import calls, steps
from dpwatch.wire.messages import Batch, Bye, Calls, Collective, Duration, Record, Step, Steps

AHEAD_NS = 1_000_000_000
"""How far a record's times may lie after its frame's."""


def _step(step: Step, latest_ns: int) -> str:
    if step.end_ns < step.start_ns:
        return "ends before it starts"
    return "ends in the future" if step.end_ns > latest_ns else ""


def _collective(call: Collective, latest_ns: int) -> str:
    done_ns = call.completed_ns
    if done_ns is None:
        return "is issued in the future" if call.issued_ns > latest_ns else ""
    if done_ns < call.issued_ns:
        return "is done before it is issued"
    return "is done in the future" if done_ns > latest_ns else ""


def _duration(duration: Duration, latest_ns: int) -> str:
    return "is done in the future" if (duration.completed_ns or 0) > latest_ns else ""


def _bye(bye: Bye, latest_ns: int) -> str:
    return "" if bye.state in ("finished", "failed", "lost") else "has a state of its own"


_RULES: dict[type[Record], Callable[[Any, int], str]] = {
    Step: _step,
    Collective: _collective,
    Calls: calls.fault,
    Duration: _duration,
    Steps: steps.fault,
    Bye: _bye,
}


def faults(batch: Batch) -> dict[int, str]:
    """What is wrong with records of a frame, by their place in it; about 0.2 µs a record."""
    found = {}
    latest_ns = batch.mono_ns + AHEAD_NS
    rules = _RULES
    for place, record in enumerate(batch.records):
        rule = rules.get(type(record))
        if rule is not None and (fault := rule(record, latest_ns)):
            found[place] = f"{type(record).__name__.lower()} {fault}"
    return found
