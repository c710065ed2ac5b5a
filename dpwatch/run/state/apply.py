"""Applies a frame to a run's state. Nothing else changes it, so frames can be replayed."""

from __future__ import annotations

from dpwatch.run.state import bounds, generations
from dpwatch.run.state.exits import combine_ends
from dpwatch.run.state.flush import flush, forget_calls
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.records import apply_record
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.batching import count_records
from dpwatch.wire.messages import (
    HUB_RANK,
    Asked,
    Batch,
    Bye,
    Command,
    Host,
    Joined,
    Tick,
    Unanswered,
)


def apply(state: RunState, batch: Batch) -> None:
    """Applies one frame."""
    state.frames += 1
    if batch.mono_ns >= state.now_ns:
        state.now_ns, state.wall_s = batch.mono_ns, batch.wall_ns / 1e9
    if batch.rank == HUB_RANK:
        _hub(state, batch)
        return
    state.began_s = state.began_s or batch.wall_ns / 1e9
    try:
        rank = _rank(state, batch)
    except bounds.LimitReached:
        state.refused += count_records(batch.records)
        return
    if state.pending.is_due:
        flush(state)
    for sent in batch.records:
        record = generations.in_run(state, rank, sent)
        if isinstance(record, Bye):
            _bye(state, rank, record, batch)
        else:
            apply_record(state, rank, record)


def _hub(state: RunState, batch: Batch) -> None:
    for record in batch.records:
        match record:
            case Host():
                state.others[record.host] = record
            case Joined():
                state.joined = record
            case Command():
                state.command = record
            case Asked() | Unanswered():
                _asked(state, record, batch.mono_ns)
            case Tick():
                for silent in record.silent:
                    rank = state.ranks.get(silent.rank)
                    if rank is not None and rank.pid == silent.pid:
                        rank.process = silent.process


def _rank(state: RunState, batch: Batch) -> RankState:
    rank = state.ranks.get(batch.rank)
    if rank is None or rank.pid != batch.pid:
        rank = _newcomer(state, batch, rank)
    if batch.seq >= 0:
        if rank.seen is not None and rank.seen.exit is None:
            rank.seen = None  # It had only been silent.
            rank.bye = rank.own
        if rank.own is not None and rank.own.then == "idle":
            rank.own, rank.bye = None, rank.seen  # It has resumed this run.
        rank.received.add(batch.seq)
        if batch.sent is not None and batch.sent - rank.taken > rank.missed:
            rank.missed = batch.sent - rank.taken
        rank.taken += count_records(batch.records)
    rank.seen_ns = batch.mono_ns
    rank.process = ""
    if batch.dropped > rank.dropped:
        rank.dropped = batch.dropped
    return rank


def _newcomer(state: RunState, batch: Batch, before: RankState | None) -> RankState:
    if before is None and len(state.ranks) >= bounds.RANKS:
        raise bounds.LimitReached
    rank = RankState(batch.rank, batch.host, batch.pid)
    if before is not None:
        rank.left = forget(state, batch.rank)
    elif batch.rank >= state.world_size:  # the run grows
        rank.left = {}
    state.add_rank(rank)
    if before is not None and before.hello:
        state.update_world_size()
    return rank


def forget(state: RunState, r: int) -> dict[str, int] | None:
    """Forgets a rank that another process has taken over, which counts from 0 again.

    Returns:
        The last generation of each group that it was in, None if the rank was unknown.
    """
    flush(state)
    forget_calls(state, r)
    state.offsets.forget(r)
    before = state.ranks.pop(r, None)
    if before is not None:
        state.lanes -= len(before.lanes)
        state.cells -= before.cells
        state.hosts[before.host] -= 1
        if not state.hosts[before.host]:
            del state.hosts[before.host]
    for key in [key for key, route in state.routes.items() if route.rank == r]:
        del state.routes[key]
    return None if before is None else generations.left(before)


def _bye(state: RunState, rank: RankState, record: Bye, batch: Batch) -> None:
    if batch.seq >= 0:
        rank.own = record
        rank.whole_steps = max(rank.whole_steps, rank.steps_done)  # nothing follows a goodbye
    else:
        rank.seen = record
        rank.exited_ns = 0 if record.exit is None else batch.mono_ns
    if rank.bye is None:
        rank.ended_ns = state.end_ns = batch.mono_ns
    rank.bye = combine_ends(rank.own, rank.seen, rank.worker)


def _asked(state: RunState, record: Asked | Unanswered, now_ns: int) -> None:
    """Records that ranks were asked for their stacks, or that one does not answer."""
    if isinstance(record, Unanswered):
        rank = state.ranks.get(record.rank)
        if rank is not None and rank.pid == record.pid and rank.dump.awaited:
            rank.dump.process = record.process
        return
    for number in record.ranks or state.ranks:
        if (rank := state.ranks.get(number)) is not None and rank.bye is None:
            rank.dump.ask(record.number, now_ns)
