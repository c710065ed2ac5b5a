"""Converts frames and states of other hosts to this host's clock.

Records contain times of their sender's monotonic clock, which is unrelated to other hosts' clocks.
A head adds each host's offset to incoming frames, so that everything after it sees one clock. Only
points in time are shifted; most `*_ns` fields are durations, which don't depend on the clock.
"""

from __future__ import annotations

from typing import TypeVar, cast

import msgspec
from msgspec.structs import astuple

from dpwatch.run.state.flush import flush, shift_calls
from dpwatch.run.state.parts import Covered, RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import STEP_COLUMNS, STEP_WIDTH
from dpwatch.wire.messages import (
    AnyRecord,
    Batch,
    Beat,
    Calls,
    Collective,
    Command,
    Duration,
    Position,
    Stacks,
    Step,
    Steps,
    Unfinished,
)

MOMENTS: dict[type[msgspec.Struct], tuple[str, ...]] = {
    Step: ("start_ns", "end_ns"),
    Collective: ("issued_ns", "completed_ns"),
    Calls: ("latest_ns",),
    Duration: ("completed_ns",),
    Steps: ("latest_ns",),
    Position: ("issued_ns",),
    Unfinished: ("issued_ns",),
    Stacks: ("taken_ns",),
    Command: ("interrupted_ns",),
}
"""Fields of each record that are points in time; a test checks that none is missing."""

_INDICES = {
    struct: tuple(struct.__struct_fields__.index(name) for name in names)
    for struct, names in MOMENTS.items()
}
_STEP_MOMENTS = tuple(STEP_COLUMNS.index(name) for name in MOMENTS[Step])
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def shifted_batch(batch: Batch, offset_ns: int, wall_ns: int) -> Batch:
    """A frame converted to this host's clock; `wall_ns` is this host's wall clock."""
    return msgspec.structs.replace(
        batch,
        mono_ns=batch.mono_ns + offset_ns,
        wall_ns=wall_ns,
        records=[shifted(record, offset_ns) for record in batch.records],
    )


def shifted(record: AnyRecord, offset_ns: int) -> AnyRecord:
    """A record converted to this host's clock."""
    if isinstance(record, Beat):
        if not record.positions:
            return record
        positions = [_shifted_position(place, offset_ns) for place in record.positions]
        return msgspec.structs.replace(record, positions=positions)
    return _add_offset(record, offset_ns)


def _shifted_position(place: Position, offset_ns: int) -> Position:
    moved = _add_offset(place, offset_ns)
    if place.oldest is None:
        return moved
    return msgspec.structs.replace(moved, oldest=_add_offset(place.oldest, offset_ns))


def _add_offset(struct: _Struct, offset_ns: int) -> _Struct:
    """Adds the offset to the points in time; twice as fast as `msgspec.structs.replace`."""
    places = _INDICES.get(type(struct))
    if places is None:
        return struct
    values = list(msgspec.structs.astuple(struct))
    for place in places:
        if values[place] is not None:
            values[place] += offset_ns
    return type(struct)(*values)


def shift_state(state: RunState, offset_ns: int) -> None:
    """Converts another host's state to this host's clock, in place."""
    flush(state)
    state.now_ns += offset_ns
    if state.start_ns is not None:
        state.start_ns += offset_ns
    if state.end_ns is not None:
        state.end_ns += offset_ns
    for rank in state.ranks.values():
        _shift_rank(rank, offset_ns)
    shift_calls(state, offset_ns)


def _shift_rank(rank: RankState, offset_ns: int) -> None:
    rank.seen_ns += offset_ns
    # 0 means "not yet".
    rank.progress_ns += offset_ns if rank.progress_ns else 0
    rank.ended_ns += offset_ns if rank.ended_ns else 0
    rank.waits = Covered(*(ns + offset_ns if ns else 0 for ns in astuple(rank.waits)))
    rank.exited_ns += offset_ns if rank.exited_ns else 0
    rank.dump.asked_ns += offset_ns if rank.dump.asked_ns else 0
    if rank.dump.stacks is not None:
        rank.dump.stacks = _add_offset(rank.dump.stacks, offset_ns)
    if rank.beat is not None:
        rank.beat = cast("Beat", shifted(rank.beat, offset_ns))
    for lane in rank.lanes.values():
        vars(lane.recent).clear()  # its cache of steps
        rows = lane.recent.rows
        for at in range(0, len(rows), STEP_WIDTH):
            for place in _STEP_MOMENTS:
                rows[at + place] += offset_ns
