"""Applies one record of a rank to a run's state."""

from __future__ import annotations

from dpwatch.run.state import bounds
from dpwatch.run.state.call_tallies import add_duration
from dpwatch.run.state.curves import Envelope, Thinned
from dpwatch.run.state.parts import LaneState, RankState, Route
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import CALLS, NBYTES, TIMED_CALLS, TIMED_NS
from dpwatch.run.state.step_rows import last_samples
from dpwatch.wire.arrays import Ints
from dpwatch.wire.messages import (
    AnyRecord,
    Beat,
    Calls,
    Collective,
    Duration,
    Gpu,
    Hello,
    Memory,
    Output,
    Refused,
    Stacks,
    Step,
    Steps,
    Transfer,
)


def apply_record(state: RunState, rank: RankState, record: AnyRecord) -> None:
    """Applies a record; one that exceeds a limit is counted as refused."""
    try:
        match record:
            case Steps() | Step():
                lane = rank.lanes.get(record.device) or state.lane(rank, record.device)
                lane.samples = last_samples(record)
                state.pending.add_steps(rank.rank, record)
            case Calls() | Collective():
                state.pending.add_calls(rank.rank, record)
            case Duration():
                if not state.pending.add_duration(rank.rank, record):
                    add_duration(state, rank, record)
            case Transfer():
                _transfer(state, rank, record)
            case Memory():
                _memory(state.lane(rank, record.device), record)
            case Beat():
                _beat(state, rank, record)
            case Gpu():
                state.lane(rank, record.device).gpu = record
            case Output():
                state.output.add(rank.rank, record, rank.hello.world_size if rank.hello else 1)
            case Hello():
                _hello(state, rank, record)
            case Stacks():
                rank.dump.store(record, max(state.world_size, len(state.ranks)))
            case Refused():
                rank.refused += 1
    except (bounds.LimitReached, OverflowError):  # a limit is reached, or a number exceeds 64 bits
        rank.refused += 1


def _beat(state: RunState, rank: RankState, record: Beat) -> None:
    """Applies a heartbeat, which counts completed steps: not every short step has a record.

    It comes first in its frame, so calls made before it may arrive after it, but not after the
    next one.
    """
    if rank.beat is not None:
        rank.whole_steps = max(rank.whole_steps, rank.beat.step)
    rank.beat = record
    if 0 in rank.lanes:
        lane = rank.lanes[0]
        lane.steps = max(lane.steps, record.step)


def _hello(state: RunState, rank: RankState, record: Hello) -> None:
    before, rank.hello = rank.hello, record
    rank.groups = record.groups or rank.groups
    if before is None or before.world_size != record.world_size:
        state.update_world_size(record.world_size if before is None else None)


def _transfer(state: RunState, rank: RankState, record: Transfer) -> None:
    key = f"{rank.rank}/{record.kind}/{record.src}/{record.dst}"
    route = state.routes.get(key)
    if route is None:
        if len(state.routes) >= bounds.ROUTES:
            raise bounds.LimitReached
        route = Route(rank.rank, record.kind, record.src, record.dst)
        state.routes[key] = route
    at, cells = route.by_step.at(record.step), route.by_step.cells
    if at is not None:
        if _would_overflow(cells, at):
            raise bounds.LimitReached
        cells[at + CALLS] += 1
        cells[at + NBYTES] += record.nbytes
        cells[at + TIMED_CALLS] += 1
        cells[at + TIMED_NS] += record.duration_ns


def _would_overflow(cells: Ints, at: int) -> bool:
    """Whether another copy could overflow a 64-bit sum of that row."""
    return bool(
        cells[at + CALLS] >= bounds.CALLS_A_STEP or cells[at + TIMED_NS] >= bounds.SUMMED_NS
    )


def _memory(lane: LaneState, record: Memory) -> None:
    if lane.memory is not None and lane.memory.source != record.source:
        lane.peak_bytes, lane.highest = Envelope(), None  # not comparable with the new source
    lane.memory = record
    lane.peak_bytes.push(record.step, record.peak_bytes)
    # Resident size hardly falls when memory is freed, so it says little about what is held.
    by_heap = record.source == "rss" and record.heap_bytes is not None
    account = "heap" if by_heap else record.source
    if lane.held_from != account:
        lane.held_bytes, lane.held_samples, lane.held_from = Thinned(), Thinned(), account
    held = record.heap_bytes if by_heap else record.current_bytes
    lane.held_bytes.push(record.step, held or 0)
    lane.held_samples.push(record.step, lane.samples)  # of this step or a recent one
    if lane.highest is None or record.peak_bytes >= lane.highest.peak_bytes:
        lane.highest = record
