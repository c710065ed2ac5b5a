"""What the sender thread tells of calls: each once, as it is then, and its end if that comes later.

A call's record is queued when the call is issued and made when it leaves, mostly some ten
milliseconds later: by then most calls are over, and nothing had to be done for it on their caller's
thread. Of the others the end follows in a record of its own (`Duration`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dpwatch.probe.collectives_calls import Call
from dpwatch.probe.collectives_groups import Group, Groups
from dpwatch.probe.collectives_waits import Waits
from dpwatch.wire.messages import Collective, Position

if TYPE_CHECKING:
    from dpwatch.probe.seams import RecordSink

MOST_GROUPS = 16
"""Groups that a heartbeat tells of."""

MOST_UNDER_WAY = 8192
"""Calls whose end is still awaited; of more than these the oldest are given up."""


class Reports:
    """Made by the callers' thread, used on the sender's.

    Args:
        record: Takes what is recorded.
        step_of: The step under way.
    """

    def __init__(
        self, record: RecordSink, step_of: Callable[[], int], groups: Groups, waits: Waits
    ) -> None:
        self._record = record
        self._step_of = step_of
        self._groups = groups
        self._waits = waits
        self._under_way: list[Call] = []

    def tell(self, call: Call) -> Collective | None:
        """The call's record as it leaves, None of one that could not be issued."""
        if call.cancelled:
            return None
        settled = call.is_settled()
        if not settled:
            self._under_way.append(call)
        group = call.group
        if call.op.peer is None and not call.watched:
            first = group.unwatched
            if first is None or first.step != call.step:
                group.unwatched = call
        return call.record(settled=settled)

    def follow_up(self) -> None:
        """Records the end of calls that were under way when their record left."""
        self._waits.forget()
        self._groups.forget()
        waiting, self._under_way = self._under_way[-MOST_UNDER_WAY:], []
        for call in waiting:
            if not call.is_settled():
                self._under_way.append(call)
            elif (end := call.end()) is not None:
                self._record(end)

    def positions(self) -> list[Position]:
        """How far each group has come, the latest first, for whoever looks for a hang."""
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
        """The first call of this step whose end nobody tells; what came before the step is over."""
        first = group.unwatched
        return None if first is None or first.step < self._step_of() else first


def _before(newest: Call, *calls: Call | None) -> Call | None:
    """The first of these calls if it is before the newest."""
    found = [call for call in calls if call is not None and call.seq < newest.seq]
    return min(found, key=lambda call: call.seq, default=None)
