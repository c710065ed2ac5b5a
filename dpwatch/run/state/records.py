"""What one record of a rank does to a run's state."""

from __future__ import annotations

from dpwatch.run.state import booking, bounds
from dpwatch.run.state.curves import Envelope, Thinned
from dpwatch.run.state.parts import LaneState, RankState, Route
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import CALLS, NBYTES, SAMPLES, TIMED_CALLS, TIMED_NS
from dpwatch.wire.batching import unpack
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


def take(state: RunState, rank: RankState, record: AnyRecord, now_ns: int = 0) -> None:
    """Takes in a record, sent at that time."""
    try:
        match record:
            case Step():
                _step(state, rank, record)
            case Calls() | Steps():
                for each in unpack((record,)):
                    take(state, rank, each, now_ns)
            case Collective():
                booking.collective(state, rank, record)
            case Duration():
                booking.duration(state, rank, record)
            case Transfer():
                _transfer(state, rank, record)
            case Memory():
                _memory(state.lane(rank, record.device), record)
            case Beat():
                _beat(state, rank, record)
            case Gpu():
                state.lane(rank, record.device).gpu = record
            case Output():
                state.output.take(rank.rank, record, rank.hello.world_size if rank.hello else 1)
            case Hello():
                _hello(state, rank, record)
            case Stacks():
                rank.dump.take(record, max(state.world_size, len(state.ranks)))
            case Refused():
                rank.refused += 1
    except (bounds.Full, OverflowError):  # no room, or numbers that no run has
        rank.refused += 1


def _step(state: RunState, rank: RankState, record: Step) -> None:
    lane = rank.lanes.get(record.device) or state.lane(rank, record.device)
    lane.recent.push(record)
    if record.step >= lane.steps:
        lane.steps = record.step + 1
    if record.step >= rank.whole_steps:  # a step's calls come before it
        rank.whole_steps = record.step + 1
    took_ms = (record.end_ns - record.start_ns) / 1e6
    lane.step_ms.push(record.step, took_ms)
    rank.progress_ns = max(rank.progress_ns, record.end_ns)
    if state.start_ns is None or record.start_ns < state.start_ns:
        state.start_ns = record.start_ns
    if record.device == 0:
        if record.loss is not None:
            state.judge_loss(rank, record.step, record.loss)
            state.add_loss(record.step, record.loss)
        if rank.rank == next(iter(state.ranks)):
            state.step_ms.push(record.step, took_ms)


def _beat(state: RunState, rank: RankState, record: Beat) -> None:
    """A beat counts the steps done; of short ones not every one has a record.

    It goes first in its frame, so calls that were made before it may come after it, but not
    after the next.
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
        state.measure(record.world_size if before is None else None)


def _transfer(state: RunState, rank: RankState, record: Transfer) -> None:
    key = f"{rank.rank}/{record.kind}/{record.src}/{record.dst}"
    route = state.routes.get(key)
    if route is None:
        if len(state.routes) >= bounds.ROUTES:
            raise bounds.Full
        route = Route(rank.rank, record.kind, record.src, record.dst)
        state.routes[key] = route
    at, cells = route.by_step.at(record.step), route.by_step.cells
    if at is not None:
        if booking.is_full(cells, at):
            raise bounds.Full
        cells[at + CALLS] += 1
        cells[at + NBYTES] += record.nbytes
        cells[at + TIMED_CALLS] += 1
        cells[at + TIMED_NS] += record.duration_ns


def _memory(lane: LaneState, record: Memory) -> None:
    if lane.memory is not None and lane.memory.source != record.source:
        lane.peak_bytes, lane.highest = Envelope(), None  # of something else
    lane.memory = record
    lane.peak_bytes.push(record.step, record.peak_bytes)
    # Resident size hardly falls when memory is freed, and says little of what is held.
    by_heap = record.source == "rss" and record.heap_bytes is not None
    account = "heap" if by_heap else record.source
    if lane.held_from != account:
        lane.held_bytes, lane.held_samples, lane.held_from = Thinned(), Thinned(), account
    held = record.heap_bytes if by_heap else record.current_bytes
    lane.held_bytes.push(record.step, held or 0)
    newest = lane.recent.column(SAMPLES, 1)  # of this step, or of one shortly before
    lane.held_samples.push(record.step, max(0, newest[0]) if newest else 0)
    if lane.highest is None or record.peak_bytes >= lane.highest.peak_bytes:
        lane.highest = record
