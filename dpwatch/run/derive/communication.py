"""Communication figures per step: traffic, times, collectives, copies and messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import compress

from dpwatch.plan.traffic import bus_factor
from dpwatch.quantiles import mean, quantile
from dpwatch.run.derive.rank_metrics import (
    CallFigures,
    OpFigures,
    StepFigures,
    complete_steps,
    tallies,
    timed_ms,
    traffic_steps,
)
from dpwatch.run.model.snapshot import (
    CollectiveStats,
    CommTimes,
    LastArrival,
    MessageStats,
    Quantiles,
    TransferStats,
)
from dpwatch.run.state.parts import LaneState, OpState, RankState, Route
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import CALLS, NBYTES, TIMED_NS
from dpwatch.wire.collectives import MESSAGES
from dpwatch.wire.messages import DeviceInfo, Step

BUSY_STEPS = 2

MOST_MESSAGES = 512
"""Pairs of ranks reported: those with the most traffic."""


def traffic(
    state: RunState,
    rank: RankState,
    lane: LaneState,
    routes: Sequence[Route],
    calls: CallFigures,
    common: int,
) -> tuple[int | None, int | None]:
    """Bytes per step that a device sends and receives, by copies and by collectives' algorithms.

    Means over steps that all ranks have completed (`common`, see `steps_in_common`). None if the
    rank communicates in ways that its probe can't see, or if one of several ranks made no calls.
    """
    steps = traffic_steps(rank, common)
    was_seen = routes or len(state.ranks) == 1 or any(each.calls for each in rank.lanes.values())
    if not steps or not was_seen or (rank.hello is not None and rank.hello.unseen):
        return None, None
    sent = _copied(routes, steps, [route.src == lane.device for route in routes])
    received = _copied(routes, steps, [route.dst == lane.device for route in routes])
    sent, received = sent + (calls.sent_bytes or 0), received + (calls.received_bytes or 0)
    return whole_bytes(sent), whole_bytes(received)


def whole_bytes(mean: float) -> int:
    """Rounds a mean of bytes to an integer that is 0 only if the mean is."""
    return max(1, round(mean)) if mean > 0 else 0


def _copied(routes: Sequence[Route], steps: range, wanted: Sequence[bool]) -> float:
    """Bytes per step over the wanted routes."""
    return sum(_mean_bytes(route, steps) for route in compress(routes, wanted))


def _mean_bytes(route: Route, steps: range) -> float:
    return sum(route.by_step.column(NBYTES, steps)) / len(steps)


def comm_times(
    rank: RankState,
    lane: LaneState,
    routes: Sequence[Route],
    calls: CallFigures,
    steps: StepFigures,
) -> CommTimes:
    """A device's communication time per step, for its copies and the collectives it issued.

    In each sampled step the probe measures for how long collectives were in flight, and for how
    long they blocked its thread. Where Python waits for all of them (FSDP, ZeRO), the latter is
    known for the other steps too, and the mean is over all steps.

    Times known only per call (copies, NCCL's durations) are added up, since their overlap is
    unknown. Times are capped at the mean duration of all steps: sampled steps may be longer.
    """
    total, exposed, share = steps.comm_ms, steps.exposed_ms, steps.exposed_share
    if calls.waited_ms is not None and not routes and steps.mean_ms:
        exposed = calls.waited_ms
        share = min(exposed / steps.mean_ms, 1.0)
        total = None if total is None else max(total, exposed)  # few sampled steps may miss it
    if total is None or routes:
        total = _added_up_ms(rank, lane, routes, calls)
    within = _within(steps.mean_ms)
    return CommTimes(within(total), within(exposed), within(calls.wait_ms), share)


def _within(step_ms: float | None) -> Callable[[float | None], float | None]:
    """Returns a function that caps a time at the step's duration."""
    return lambda ms: ms if ms is None or step_ms is None else min(ms, step_ms)


def _added_up_ms(
    rank: RankState, lane: LaneState, routes: Sequence[Route], calls: CallFigures
) -> float | None:
    done = complete_steps(rank.whole_steps)
    moved = [route.by_step.over(done) for route in routes if lane.device in (route.src, route.dst)]
    if moved:
        return mean(timed_ms(each) for each in zip(*moved, tallies(lane, done), strict=True))
    timed = calls.timed_ms
    if timed is None:  # the last steps that were timed
        timed = mean(timed_ms([tally]) for tally in lane.late.tallies.values())
    return None if timed is None or not done else timed * calls.busy


def collectives(
    state: RunState, figures: Callable[[str], OpFigures], exposed_ms: Sequence[float | None]
) -> list[CollectiveStats]:
    """Collectives, most bytes first; without those that no recent step has called.

    Args:
        state: State of the run.
        figures: Returns the figures of an op, given its key in `state.ops`.
        exposed_ms: Exposed communication of each rank's first device.
    """
    found = [_collective(state, key, figures(key), exposed_ms) for key in state.ops]
    called = [each for each in found if each.count_per_step != 0]
    return sorted(called, key=lambda each: -(each.bytes_per_step or 0))


def _collective(
    state: RunState, key: str, figures: OpFigures, exposed_ms: Sequence[float | None]
) -> CollectiveStats:
    op = state.ops[key]
    timed_ns, handed_in = figures.timed_ns, figures.moved
    if not timed_ns and op.timed_late:  # the last steps that were timed
        timed_ns, handed_in = _timed_late(state, key)
    seconds = timed_ns / 1e9
    # nccl-tests takes the gathered array as an all-gather's size, and the payload for other ops.
    whole = op.ranks if op.op == "all_gather" else 1
    moved = handed_in * whole
    algbw = moved / seconds / 1e9 if seconds else None
    factor = bus_factor(op.op, op.ranks)
    exposed = figures.waited_ms
    if exposed is None and _only_busy(state, key):
        exposed = mean(exposed_ms)
    cells = figures.cells
    return CollectiveStats(
        op=op.op,
        group=op.group,
        ranks=2 if op.op in MESSAGES else op.ranks,
        count_per_step=figures.calls / cells if cells else None,
        bytes_per_step=whole_bytes(figures.nbytes / cells) if cells else None,
        latency_ms=Quantiles(quantile(op.latency_ms, 0.5), quantile(op.latency_ms, 0.95)),
        algbw_gbps=algbw,
        busbw_gbps=None if algbw is None or factor is None else algbw * factor,
        exposed_ms_per_step=exposed,
        last_arrival=_last_arrival(op),
    )


def _timed_late(state: RunState, key: str) -> tuple[int, float]:
    """Nanoseconds and payload bytes of an op's calls that were timed late."""
    late = [
        tally
        for rank in state.ranks.values()
        for lane in rank.lanes.values()
        if key in lane.late_calls
        for tally in lane.late_calls[key].tallies.values()
    ]
    moved = math.fsum(t.nbytes * t.timed_calls / t.calls for t in late)
    return sum(t.timed_ns for t in late), moved


def _only_busy(state: RunState, key: str) -> bool:
    """Whether no other op is called in more than a few steps.

    Then the ranks' exposed time is all due to this op; among several ops it can't be split.
    """
    busy = {
        name
        for rank in state.ranks.values()
        for lane in rank.lanes.values()
        for name, by_step in lane.calls.items()
        if by_step.seen > BUSY_STEPS
    }
    return busy == {key}


def _last_arrival(op: OpState) -> LastArrival | None:
    if not op.last_calls or op.ranks < 2:
        return None
    rank = max(op.last_calls, key=lambda r: op.last_calls[r])
    calls = op.last_calls[rank]
    return LastArrival(
        rank=rank,
        share=calls / sum(op.last_calls.values()),
        wait_ms=op.last_wait_ns[rank] / calls / 1e6,
    )


def transfers(state: RunState) -> list[TransferStats]:
    """Copies between the devices of one process, by kind, source and destination."""
    found = []
    for route in state.routes.values():
        rank = state.ranks.get(route.rank)
        if rank is None:
            continue
        steps = complete_steps(rank.whole_steps)
        if steps:
            found.append(
                TransferStats(
                    kind=route.kind,
                    src=device_of(rank, route.src).name,
                    dst=device_of(rank, route.dst).name,
                    bytes_per_step=whole_bytes(_mean_bytes(route, steps)),
                    ms_per_step=sum(route.by_step.column(TIMED_NS, steps)) / len(steps) / 1e6,
                )
            )
    return found


def messages(state: RunState) -> list[MessageStats]:
    """Point-to-point messages by sender and receiver, most bytes first."""
    found: dict[tuple[int, int], MessageStats] = {}
    for op in ("recv", "send"):  # the sender's figures replace the receiver's
        for rank in state.ranks.values():
            steps = complete_steps(rank.whole_steps)
            for key, by_step in rank.peers.items() if steps else ():
                direction, _, peer = key.partition("/")
                ends = (rank.rank, int(peer)) if op == "send" else (int(peer), rank.rank)
                calls = sum(by_step.column(CALLS, steps))
                if direction == op and calls:
                    nbytes = sum(by_step.column(NBYTES, steps))
                    per_step = calls / len(steps), whole_bytes(nbytes / len(steps))
                    found[ends] = MessageStats(*ends, *per_step)
    return sorted(found.values(), key=lambda each: -each.bytes_per_step)[:MOST_MESSAGES]


def steps_in_common(state: RunState) -> int:
    """Number of steps that all ranks have completed and reported in full."""
    return min((rank.whole_steps for rank in state.ranks.values() if rank.lanes), default=0)


def device_of(rank: RankState, index: int) -> DeviceInfo:
    """The device as its rank announced it, or just its number before that."""
    if rank.hello and index < len(rank.hello.devices):
        return rank.hello.devices[index]
    return DeviceInfo(f"device {index}", "")


def untimed(device: DeviceInfo, step: Step) -> bool:
    """Whether the step's phases are unknown, as opposed to absent.

    A CUDA device's phases are known only in steps that were measured on the device.
    """
    times = (step.forward_ns, step.backward_ns, step.optimizer_ns)
    return device.kind == "cuda" and all(ns is None for ns in times)
