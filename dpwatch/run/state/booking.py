"""Collectives one by one: into the tallies of who called them, and into the order of arrivals."""

from __future__ import annotations

from dpwatch.plan.traffic import wire_bytes
from dpwatch.run.state import bounds
from dpwatch.run.state.late_durations import book, keep_latency
from dpwatch.run.state.parts import LaneState, OpState, RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import (
    CALLS,
    NBYTES,
    TIMED_CALLS,
    TIMED_NS,
    WAIT_NS,
    WAITED_CALLS,
    WAITED_NS,
    WIRE,
    ByStep,
    Ints,
)
from dpwatch.wire.calls import CallSignature
from dpwatch.wire.collectives import MESSAGES
from dpwatch.wire.messages import Collective, Duration


def collective(state: RunState, rank: RankState, record: Collective) -> None:
    """A rank's call.

    Raises:
        bounds.Full: There is no room for it.
    """
    nbytes = record.nbytes
    if record.ranks < 1 or nbytes < 0:
        return
    lane = rank.lanes.get(record.device) or state.lane(rank, record.device)
    key = f"{record.op}/{record.group}"
    op, tallies = state.ops.get(key), lane.calls.get(key)
    if op is None or tallies is None:
        op, tallies = called(state, rank, lane, key, record)
    at = tallies.at(record.step)
    if at is not None:
        cells = tallies.cells
        if is_full(cells, at):
            raise bounds.Full
        cells[at + CALLS] += 1
        cells[at + NBYTES] += nbytes
        cells[at + WIRE] += wire_bytes(record.op, nbytes, record.ranks)
        if record.blocked_ns is not None:
            cells[at + WAITED_CALLS] += 1
            cells[at + WAITED_NS] += record.blocked_ns
        if record.completed_ns is not None:
            cells[at + TIMED_CALLS] += 1
            cells[at + TIMED_NS] += record.completed_ns - record.issued_ns
    if record.completed_ns is not None:
        keep_latency(op.latency_ms, record.completed_ns - record.issued_ns)
    if record.op not in MESSAGES:
        arrive(state, rank.rank, record, op)
    elif record.peer is not None:
        exchanged(state, rank, f"{record.op}/{record.peer}", record.step, 1, nbytes)


def called(
    state: RunState, rank: RankState, lane: LaneState, key: str, record: Collective | CallSignature
) -> tuple[OpState, ByStep]:
    """A kind of collective that this lane has not called before."""
    if rank.cells >= bounds.CELLS_A_RANK or state.cells >= bounds.CELLS:
        raise bounds.Full
    op = state.ops.get(key)
    if op is None:
        if len(state.ops) >= bounds.OPS:
            raise bounds.Full
        op = state.ops[key] = OpState(record.op, record.group, record.ranks)
    rank.cells += 1
    state.cells += 1
    tallies = lane.calls[key] = ByStep()
    return op, tallies


def exchanged(
    state: RunState, rank: RankState, key: str, step: int, calls: int, nbytes: int
) -> None:
    """Messages of a rank to or from another one; `key` is `op/peer`."""
    by_step = rank.peers.get(key)
    if by_step is None:
        if rank.cells >= bounds.CELLS_A_RANK or state.cells >= bounds.CELLS:
            return  # what it sends is counted all the same
        rank.cells += 1
        state.cells += 1
        by_step = rank.peers[key] = ByStep()
    at = by_step.at(step)
    if at is not None:
        by_step.cells[at + CALLS] += calls
        by_step.cells[at + NBYTES] += nbytes


def duration(state: RunState, rank: RankState, record: Duration) -> None:
    """How long a call took that was told of before."""
    key = f"{record.op}/{record.group}"
    op, lane = state.ops.get(key), rank.lanes.get(record.device)
    if op is None or lane is None:
        return
    took = book(record, key, lane.calls, lane.late_calls, lane.late)
    if took and record.duration_ns is not None:
        op.timed_late |= record.completed_ns is None
        keep_latency(op.latency_ms, record.duration_ns)


def arrive(state: RunState, r: int, record: Collective, op: OpState) -> None:
    """A rank has entered a call."""
    entered = state.arrivals.enter(r, record)
    if entered is not None and len(entered) > 1:
        steps = {r: call.step for r, call in entered.items()}
        state.offsets.take(record.group, steps, record.generation)
        _whole(state, f"{record.op}/{record.group}", op, entered)


def _whole(state: RunState, key: str, op: OpState, entered: dict[int, Collective]) -> None:
    """Books who came last to a call that all have entered.

    `wait(r) = last arrival - arrival(r)`; a moment of waiting in several calls at once counts once.
    """
    if len(state.hosts) > 1:
        hosts = {state.ranks[r].host for r in entered if r in state.ranks}
        if state.clock_error_ns(hosts) is None:
            return
    issued_ns = [call.issued_ns for call in entered.values()]
    last_ns = max(issued_ns)
    if last_ns - min(issued_ns) > bounds.APART_NS:
        return  # no clocks that compare
    for r, call in entered.items():
        rank = state.ranks.get(r)
        if rank is None or call.issued_ns == last_ns:
            continue
        wait_ns = rank.waits.add(call.issued_ns, last_ns)
        lane = rank.lanes.get(call.device)
        tallies = None if lane is None else lane.calls.get(key)
        if tallies is not None and wait_ns:  # else another op, where ranks are out of step
            at = tallies.at(call.step)
            if at is not None:
                tallies.cells[at + WAIT_NS] += wait_ns
    # In the first step ranks come as their start-up lets them.
    if min([call.step for call in entered.values()]) > 0:
        waited_ns = len(issued_ns) * last_ns - sum(issued_ns)
        ranks = list(entered)
        op.book_last(ranks[issued_ns.index(last_ns)], waited_ns // (len(ranks) - 1))
        state.arrivals.book_late(entered, issued_ns)


def is_full(cells: Ints, at: int) -> bool:
    """Whether another call could take a sum of that row beyond 64 bits; no real step comes near."""
    return bool(
        cells[at + CALLS] >= bounds.CALLS_A_STEP
        or cells[at + TIMED_NS] + cells[at + WAITED_NS] >= bounds.SUMMED_NS
        or cells[at + WAIT_NS] >= bounds.SUMMED_NS
    )
