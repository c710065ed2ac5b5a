"""Another host's frames and states brought to this host's clock.

Times of records are of their sender's monotonic clock, which has nothing to do with any other
host's. A head adds each host's offset as its frames come in, so that everything behind it reads
one clock. Only moments are shifted; most `*_ns` are lengths, and a length is one on any clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpwatch.hub.state import RankState, RunState
from dpwatch.wire.messages import AnyRecord, Batch, Beat, Collective, Position, Record, Step

MOMENTS: dict[type[Record] | type[Position], tuple[str, ...]] = {
    Step: ("start_ns", "end_ns"),
    Collective: ("issued_ns", "completed_ns"),
    Position: ("issued_ns",),
}
"""The moments in each record; a test holds that no `*_ns` field was forgotten."""


def shifted_batch(batch: Batch, offset_ns: int, wall_ns: int) -> Batch:
    """A frame in this host's time; `wall_ns` is this host's wall clock."""
    return msgspec.structs.replace(
        batch,
        mono_ns=batch.mono_ns + offset_ns,
        wall_ns=wall_ns,
        records=[shifted(record, offset_ns) for record in batch.records],
    )


def shifted(record: AnyRecord, offset_ns: int) -> AnyRecord:
    """A record in this host's time."""
    match record:
        case Step():
            return msgspec.structs.replace(
                record, start_ns=record.start_ns + offset_ns, end_ns=record.end_ns + offset_ns
            )
        case Collective():
            return _collective(record, offset_ns)
        case Beat(positions=[_, *_]):
            return msgspec.structs.replace(record, positions=_positions(record, offset_ns))
    return record


def _collective(record: Collective, offset_ns: int) -> Collective:
    done_ns = record.completed_ns
    return msgspec.structs.replace(
        record,
        issued_ns=record.issued_ns + offset_ns,
        completed_ns=None if done_ns is None else done_ns + offset_ns,
    )


def _positions(beat: Beat, offset_ns: int) -> Sequence[Position]:
    return [
        msgspec.structs.replace(place, issued_ns=place.issued_ns + offset_ns)
        for place in beat.positions
    ]


def shift_state(state: RunState, offset_ns: int) -> None:
    """Brings a host's whole state to this host's time, in place."""
    state.now_ns += offset_ns
    if state.start_ns is not None:
        state.start_ns += offset_ns
    if state.end_ns is not None:
        state.end_ns += offset_ns
    for rank in state.ranks.values():
        _shift_rank(rank, offset_ns)
    for call in state.arrivals.calls.values():
        call.entered = {r: _collective(each, offset_ns) for r, each in call.entered.items()}


def _shift_rank(rank: RankState, offset_ns: int) -> None:
    rank.seen_ns += offset_ns
    # 0 is "not yet", and not a moment.
    rank.progress_ns += offset_ns if rank.progress_ns else 0
    rank.ended_ns += offset_ns if rank.ended_ns else 0
    if rank.beat is not None and rank.beat.positions:
        positions = _positions(rank.beat, offset_ns)
        rank.beat = msgspec.structs.replace(rank.beat, positions=positions)
    for lane in rank.lanes.values():
        lane.recent = [
            msgspec.structs.replace(
                step, start_ns=step.start_ns + offset_ns, end_ns=step.end_ns + offset_ns
            )
            for step in lane.recent
        ]
