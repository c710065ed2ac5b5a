"""Merges a host's state into the run's when its hub joins a head or reconnects.

Merging is idempotent. If the host's hub was restarted and knows less about a process than this
state, what is known here is kept.
"""

from __future__ import annotations

from typing import TypeVar

from dpwatch.run.state.apply import forget
from dpwatch.run.state.curves import Thinned
from dpwatch.run.state.exits import combine_ends
from dpwatch.run.state.flush import add_open_calls, flush
from dpwatch.run.state.parts import LaneState, OpState, RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import CALLS, TALLY_WIDTH, WAIT_NS, ByStep, Window
from dpwatch.run.state.stacks import StackDump
from dpwatch.wire.calls import Calls
from dpwatch.wire.messages import Collective

_Curve = TypeVar("_Curve", bound=Thinned)


def merge(state: RunState, part: RunState, host: str) -> None:
    """Merges a hub's state of its host's ranks, whose times are on this state's clock."""
    flush(state)
    flush(part)
    ours = {r: rank for r, rank in part.ranks.items() if rank.host == host}
    news = {r for r in ours if not _is_same(state.ranks.get(r), ours[r])}
    for r in news & state.ranks.keys():
        left = forget(state, r)
        ours[r].left = left if ours[r].left is None else ours[r].left
    for r, rank in ours.items():
        known = state.ranks.get(r)
        if known is None:
            state.add_rank(rank)
        else:
            _keep_known(known, rank)
            state.ranks[r] = rank
    state.update_world_size()
    state.recount()
    _merge_ops(state, part)
    for key, route in part.routes.items():
        if route.rank in ours:
            known_route = state.routes.get(key)
            if known_route is not None:
                route.by_step = _merged_tallies(known_route.by_step, route.by_step)
            state.routes[key] = route
    if ours.keys() == news:  # otherwise some of these losses are in the sums already
        _merge_losses(state, part)
    _merge_arrivals(state, part)
    state.output.merge(part.output, ours.keys(), max(state.world_size, len(state.ranks)))
    if part.start_ns is not None:
        state.start_ns = min(state.start_ns or part.start_ns, part.start_ns)
    if part.end_ns is not None:
        state.end_ns = max(state.end_ns or part.end_ns, part.end_ns)


def _is_same(known: RankState | None, rank: RankState) -> bool:
    return known is not None and (known.host, known.pid) == (rank.host, rank.pid)


def _keep_known(known: RankState, rank: RankState) -> None:
    """Adds to `rank` what `known`, the same process, has and its hub lacks."""
    rank.hello = rank.hello or known.hello
    rank.own = rank.own or known.own
    if rank.seen is None and known.seen is not None and known.seen.exit is not None:
        rank.seen = known.seen  # an exit code is final, silence is not
    rank.bye = combine_ends(rank.own, rank.seen, rank.worker)
    rank.beat = rank.beat or known.beat
    rank.dropped = max(rank.dropped, known.dropped)
    rank.received.merge(known.received)
    rank.refused = max(rank.refused, known.refused)
    sent = max(known.taken + known.missed, rank.taken + rank.missed)
    # One may have what the other missed; only what both missed is lost.
    rank.missed = min(known.missed, rank.missed) if rank.received.missing else 0
    rank.taken = sent - rank.missed
    rank.whole_steps = max(rank.whole_steps, known.whole_steps)
    rank.waits = max(rank.waits, known.waits, key=lambda each: each.high)
    rank.seen_ns = max(rank.seen_ns, known.seen_ns)
    rank.progress_ns = max(rank.progress_ns, known.progress_ns)
    rank.ended_ns = rank.ended_ns or known.ended_ns
    rank.exited_ns = rank.exited_ns or known.exited_ns
    rank.dump = _merged_dump(known.dump, rank.dump)
    if rank.good_loss is None:
        rank.good_loss = known.good_loss
    rank.left = known.left if rank.left is None else rank.left
    rank.shifts = rank.shifts | known.shifts
    rank.generations = rank.generations | known.generations
    for key, by_step in known.peers.items():
        rank.peers[key] = _merged_tallies(by_step, rank.peers.get(key, ByStep()))
    for device, lane in known.lanes.items():
        fresh = rank.lanes.get(device)
        if fresh is None:
            rank.lanes[device] = lane
        else:
            _keep_lane(lane, fresh)
    rank.lanes = dict(sorted(rank.lanes.items()))


def _merged_dump(known: StackDump, fresh: StackDump) -> StackDump:
    """The later answer, with the head's own request state."""
    stacks = max(
        (each for each in (known.stacks, fresh.stacks) if each is not None),
        key=lambda each: each.taken_ns,
        default=None,
    )
    return StackDump(known.asked, known.asked_ns, known.process, stacks)


def _keep_lane(known: LaneState, lane: LaneState) -> None:
    lane.steps = max(lane.steps, known.steps)
    lane.recent = _merged_window(known.recent, lane.recent, lane.device)
    lane.step_ms = _merged_curve(known.step_ms, lane.step_ms)
    lane.peak_bytes = _merged_curve(known.peak_bytes, lane.peak_bytes)
    if lane.held_from in ("", known.held_from):
        lane.held_from = known.held_from
        lane.held_bytes = _merged_curve(known.held_bytes, lane.held_bytes)
        lane.held_samples = _merged_curve(known.held_samples, lane.held_samples)
    lane.memory = lane.memory or known.memory
    lane.gpu = lane.gpu or known.gpu
    source = lane.memory.source if lane.memory else ""
    highest = [
        each for each in (known.highest, lane.highest) if each is not None and each.source == source
    ]
    lane.highest = max(highest, key=lambda each: each.peak_bytes, default=None)
    for key, by_step in known.calls.items():
        lane.calls[key] = _merged_tallies(by_step, lane.calls.get(key, ByStep()))
    lane.late_calls = {**known.late_calls, **lane.late_calls}
    lane.late = lane.late if lane.late.tallies else known.late


def _merged_curve(known: _Curve, curve: _Curve) -> _Curve:
    """The curve that starts earlier, extended by the end of the other one."""
    if not known.steps or (curve.steps and curve.steps[0] <= known.steps[0]):
        return curve
    last = known.steps[-1]
    for step, value in zip(curve.steps, curve.values, strict=True):
        if step > last:
            known.push(step, value)
    return known


def _merged_window(known: Window, window: Window, device: int) -> Window:
    """The steps of both windows, limited to the latest."""
    steps = window.steps(device)
    joined = Window()
    before = [s for s in known.steps(device) if not steps or s.step < steps[0].step]
    for step in [*before, *steps]:
        joined.push(step)
    return joined


def _merged_tallies(known: ByStep, fresh: ByStep) -> ByStep:
    """Tallies of both; for a step in both, the one with more calls, and the longer wait.

    Only the head knows how long ranks waited for those of other hosts.
    """
    joined = ByStep()
    steps = {step for each in (known, fresh) for step in each.cells[::TALLY_WIDTH] if step >= 0}
    for step in sorted(steps):
        found = [(each, at) for each in (known, fresh) if (at := each.find(step)) is not None]
        fuller, from_at = max(found, key=lambda one: one[0].cells[one[1] + CALLS])
        to = joined.at(step)
        if to is not None:
            joined.cells[to : to + TALLY_WIDTH] = fuller.cells[from_at : from_at + TALLY_WIDTH]
            joined.cells[to + WAIT_NS] = max(each.cells[at + WAIT_NS] for each, at in found)
    return joined


def _merge_ops(state: RunState, part: RunState) -> None:
    for key, op in part.ops.items():
        known = state.ops.get(key)
        if known is None:
            known = state.ops[key] = OpState(op.op, op.group, op.ranks)
            # Last arrivals known so far are those of groups within the host.
            known.latency_ms = op.latency_ms
            known.last_calls, known.last_wait_ns = op.last_calls, op.last_wait_ns
            known.booked = op.booked
        known.timed_late = known.timed_late or op.timed_late


def _merge_losses(state: RunState, part: RunState) -> None:
    for step, entry in part.losses.items():
        state.add_loss(step, entry.total, entry.count)


def _merge_arrivals(state: RunState, part: RunState) -> None:
    """Adds the other hub's open calls, unless they are completed here."""
    latest = {group: calls[-1].seq for group, calls in state.arrivals.matched.items() if calls}
    entered: list[tuple[int, Calls | Collective]] = [
        (r, call)
        for calls in part.arrivals.waiting()
        for r, call in calls.items()
        if r in state.ranks
        and f"{call.op}/{call.group}" in state.ops
        and call.seq > latest.get(call.group, -1)
    ]
    add_open_calls(state, entered)
