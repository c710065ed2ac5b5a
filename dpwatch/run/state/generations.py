"""Converts a process's generations of recreated process groups to those of the run.

torch reuses a group's name, and each group of a name numbers its calls from 0. So a probe reports
how many groups of that name its process has had before (`Collective.generation`), and calls match
only within a generation. Processes that started together count alike. One that replaces another
or joins later counts from 0, so its records are converted here before they are applied.
"""

from __future__ import annotations

import functools

import msgspec

from dpwatch.run.state import bounds
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.calls import Calls, CallSignature, encoded, signatures_of
from dpwatch.wire.collectives import MESSAGES
from dpwatch.wire.messages import AnyRecord, Beat, Collective, Position


def in_run(state: RunState, rank: RankState, record: AnyRecord) -> AnyRecord:
    """Converts a record's generations to the run's; nearly always returns the record itself."""
    if isinstance(record, Collective):
        if rank.left is None and not record.generation:
            return record
        return msgspec.structs.replace(record, generation=_enter(state, rank, record))
    if isinstance(record, Calls):
        if rank.left is None and not _has_generations(record.kinds):
            return record
        kinds = [
            msgspec.structs.replace(kind, generation=_enter(state, rank, kind))
            for kind in signatures_of(record.kinds)
        ]
        return msgspec.structs.replace(record, kinds=encoded(kinds))
    if isinstance(record, Beat) and rank.left is not None:
        positions = [
            msgspec.structs.replace(each, generation=_generation(state, rank, each))
            for each in record.positions
        ]
        return msgspec.structs.replace(record, positions=positions)
    return record


def left(rank: RankState) -> dict[str, int]:
    """The last generation of each group that a process or its predecessors were in."""
    groups = {
        key.partition("/")[2]
        for lane in rank.lanes.values()
        for key in lane.calls
        if key.partition("/")[0] not in MESSAGES
    }
    return (rank.left or {}) | {group: rank.generations.get(group, 0) for group in groups}


def is_current(state: RunState, position: Position) -> bool:
    """Whether a position is in the newest group of its name, not in a destroyed one."""
    return position.generation >= state.arrivals.generations.get(position.group, 0)


def _generation(
    state: RunState, rank: RankState, call: Collective | CallSignature | Position
) -> int:
    """The run's generation of the group that a rank's call is in.

    A process that replaces another can't be in a group of its predecessor: it belongs to the
    newest group of that name, or to the one after its predecessor's if that is the newest.
    """
    if rank.left is None:
        return call.generation
    shift = rank.shifts.get(call.group)
    if shift is None:
        newest = state.arrivals.generations.get(call.group, 0)
        shift = max(newest, rank.left.get(call.group, -1) + 1) - call.generation
    return max(0, call.generation + shift)


def _enter(state: RunState, rank: RankState, call: Collective | CallSignature) -> int:
    """Like `_generation`, and records it as the newest unless a newer one is known."""
    if call.op in MESSAGES:
        return call.generation
    generation = _generation(state, rank, call)
    group, newest = call.group, state.arrivals.generations
    known = max(len(rank.shifts), len(rank.generations))
    if known >= bounds.CELLS_A_RANK and group not in rank.shifts | rank.generations:
        return generation
    if rank.left is not None:
        rank.shifts.setdefault(group, generation - call.generation)
    if generation > rank.generations.get(group, 0):
        rank.generations[group] = generation
    if generation > newest.get(group, 0) and len(newest) < bounds.OPS:
        newest[group] = generation
    return generation


@functools.lru_cache(maxsize=1024)
def _has_generations(kinds: bytes) -> bool:
    return any(kind.generation for kind in signatures_of(kinds))
