"""Makes the records of calls on the sender thread: once each, and `Duration` if they end later.

A call's record is queued when the call is issued and made when it is sent, usually some ten
milliseconds later. By then most calls have completed, and their caller's thread had nothing more to
do. For the others, the completion follows in a record of its own (`Duration`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dpwatch.probe.collectives.calls import Call, Group
from dpwatch.probe.collectives.groups import Groups
from dpwatch.probe.collectives.issuers import Issuers
from dpwatch.probe.collectives.waits import Waits
from dpwatch.wire.messages import Collective, Position, Step

if TYPE_CHECKING:
    from dpwatch.probe.send.recorder import RecordSink

MOST_GROUPS = 16
"""Groups reported in a heartbeat."""

MOST_UNDER_WAY = 8192
"""Calls whose completion is awaited; beyond that, the oldest are given up."""

FOLLOW_UP_NS = 50_000_000
"""Interval at which calls in progress are checked again."""

UNSURE_NS = 100_000
UNSURE_SHARE = 0.05
"""Acceptable error of a step's communication time, from calls whose completion is only bounded."""


class Reports:
    """Makes records from calls. Created by the caller's thread, used on the sender thread.

    Attributes:
        issuers: What frameworks have issued so far.

    Args:
        record: Takes the records of completions.
        step_of: Returns the current step.
    """

    def __init__(
        self, record: RecordSink, step_of: Callable[[], int], groups: Groups, waits: Waits
    ) -> None:
        self._record = record
        self._step_of = step_of
        self._groups = groups
        self._waits = waits
        self.issuers = Issuers()
        self._followed_ns = 0
        self._under_way: list[Call] = []
        self._over: deque[Span] = deque(maxlen=MOST_UNDER_WAY)

    def to_record(self, call: Call) -> Collective | None:
        """The call's record as it is sent, None if the call could not be issued."""
        if self._under_way and time.monotonic_ns() - self._followed_ns > FOLLOW_UP_NS:
            self.follow_up()
        if call.cancelled:
            return None
        self.issuers.add(call)
        final = call.is_final()
        if final:
            self._is_over(call)
        else:
            self._under_way.append(call)
        group = call.group
        if call.op.peer is None and not call.watched:
            first = group.unwatched
            if first is None or first.step != call.step:
                group.unwatched = call
        return call.record(final=final)

    def complete(self, step: Step) -> Step:
        """Adds the communication time to a step's record, which is sent after its calls."""
        if not self._over and not self._under_way:
            return msgspec.structs.replace(step, comm_ns=0)
        spans = [*self._over, *map(Span.of, self._under_way)]
        comm_ns = _under_way_ns([each for each in spans if each.device == step.device], step)
        if comm_ns is None:
            return step
        exposed_ns = step.exposed_ns
        if exposed_ns is not None and any(each.native for each in spans if each.step == step.step):
            # If C++ waits, the thread may have been blocked by something else.
            exposed_ns = min(exposed_ns, comm_ns)
        return msgspec.structs.replace(step, comm_ns=comm_ns, exposed_ns=exposed_ns)

    def _is_over(self, call: Call) -> None:
        """Keeps when it was in progress until the following step has ended."""
        over = self._over
        while over and over[0].step < call.step - 1:
            over.popleft()
        over.append(Span.of(call))

    def follow_up(self) -> None:
        """Records the completion of calls that were in progress when their record was sent."""
        self._followed_ns = time.monotonic_ns()
        self._waits.forget()
        self._groups.forget()
        waiting, self._under_way = self._under_way[-MOST_UNDER_WAY:], []
        for call in waiting:
            if not call.is_final():
                self._under_way.append(call)
                continue
            self._is_over(call)
            if (end := call.end()) is not None:
                self._record(end)

    def positions(self) -> list[Position]:
        """Progress in each group, latest first, for diagnosing hangs."""
        self.follow_up()
        oldest: dict[Group, Call] = {}
        for call in self._under_way:
            if call.op.peer is None and not call.is_over():
                before = oldest.setdefault(call.group, call)
                if call.seq < before.seq:
                    oldest[call.group] = call
        found = [
            (newest, _before(newest, oldest.get(group), self._unwatched(group)))
            for group in self._groups.newest()
            if (newest := group.newest) is not None
        ]
        found.sort(key=lambda each: -each[0].issued_ns)
        return [newest.position(first) for newest, first in found[:MOST_GROUPS]]

    def _unwatched(self, group: Group) -> Call | None:
        """The first call of this step whose completion is not observed; earlier steps are over."""
        first = group.unwatched
        return None if first is None or first.step < self._step_of() else first


def _before(newest: Call, *calls: Call | None) -> Call | None:
    """The first of these calls, if it is before the newest."""
    found = [call for call in calls if call is not None and call.seq < newest.seq]
    return min(found, key=lambda call: call.seq, default=None)


class Span(NamedTuple):
    """When a call was in progress, without a reference to it.

    Attributes:
        done_ns: When it completed, None if unknown or still in progress.
        latest_ns: Latest possible completion time, None if not even that is known.
        native: C++ issued it, and waits for it.
    """

    device: int
    step: int
    issued_ns: int
    done_ns: int | None
    latest_ns: int | None
    under_way: bool
    native: bool

    @classmethod
    def of(cls, call: Call) -> Span:
        """The span of a call as it is now."""
        done_ns = call.done_ns()
        under_way = done_ns is None and not call.is_final()
        latest_ns = call.latest_ns if done_ns is None else done_ns
        native = not call.from_python
        return cls(call.device, call.step, call.issued_ns, done_ns, latest_ns, under_way, native)


def _under_way_ns(spans: Iterable[Span], step: Step) -> int | None:
    """Time during which any of the calls was in progress in a step; None if unknown.

    A call whose completion is only bounded does not matter if others were in progress all that
    time.
    """
    least, most = [], []
    for span in spans:
        latest_ns = step.end_ns if span.under_way else span.latest_ns
        if latest_ns is None:
            if span.step == step.step:
                return None
            continue
        most.append((max(span.issued_ns, step.start_ns), min(latest_ns, step.end_ns)))
        if span.under_way or span.done_ns is not None:
            least.append(most[-1])
    least_ns, most_ns = _union_ns(least, step.start_ns), _union_ns(most, step.start_ns)
    is_known = most_ns - least_ns <= max(UNSURE_NS, most_ns * UNSURE_SHARE)
    return most_ns if is_known else None


def _union_ns(spans: list[tuple[int, int]], until_ns: int) -> int:
    covered_ns = 0
    for begin_ns, end_ns in sorted(spans):
        covered_ns += max(0, end_ns - max(begin_ns, until_ns))
        until_ns = max(until_ns, end_ns)
    return covered_ns
