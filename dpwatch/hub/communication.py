"""What a run's ranks and devices say to each other, per step: from sums in the state to figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dpwatch.hub.figures import (
    CallFigures,
    OpFigures,
    settled,
    tallies,
    timed_ms,
    traffic_steps,
)
from dpwatch.hub.parts import LaneState, OpState, RankState, Route
from dpwatch.hub.series import Tally, median, quantile
from dpwatch.hub.snapshot import (
    CollectiveStats,
    CommTimes,
    LastArrival,
    Quantiles,
    TransferStats,
)
from dpwatch.hub.state import RunState
from dpwatch.plan.traffic import bus_factor
from dpwatch.wire.messages import DeviceInfo, Step

BUSY_STEPS = 2


def traffic(
    state: RunState,
    rank: RankState,
    lane: LaneState,
    routes: Sequence[Route],
    calls: CallFigures,
    common: int,
) -> tuple[int | None, int | None]:
    """Bytes a step this device sends and receives: its copies, and its collectives' algorithm's.

    They are taken over steps that all ranks have done (`common`, see `steps_in_common`).
    """
    steps = traffic_steps(rank, common)
    if not steps:
        return None, None
    sent = sum(_typical_bytes(r.by_step.over(steps)) for r in routes if r.src == lane.device)
    received = sum(_typical_bytes(r.by_step.over(steps)) for r in routes if r.dst == lane.device)
    sent, received = sent + calls.wire_bytes, received + calls.wire_bytes
    seen = routes or state.ops or len(state.ranks) == 1 or _captured(rank)
    return (sent, received) if seen else (None, None)


def comm_times(
    rank: RankState,
    lane: LaneState,
    routes: Sequence[Route],
    calls: CallFigures,
    exposed_ms: float | None,
) -> CommTimes:
    """A device's time in communication per step: its copies, and what it issued of collectives.

    What of it compute waited for is known exactly where Python waited for each call (FSDP, ZeRO);
    where C++ did (DDP's reducer), or copies were made, the probe's own estimate of it counts.
    """
    moved = [route.by_step for route in routes if lane.device in (route.src, route.dst)]
    if not moved:
        exposed = exposed_ms if calls.waited_ms is None else calls.waited_ms
        total = calls.total_ms
        if total is None:  # the last steps that were timed
            total = median(timed_ms([tally]) for tally in lane.late.tallies.values())
        return CommTimes(total=total, exposed=exposed, wait=calls.wait_ms)
    done = settled(rank.steps_done)
    per_step = zip(*(each.over(done) for each in moved), tallies(lane, done), strict=True)
    total = median(timed_ms(each) for each in per_step)
    return CommTimes(total=total, exposed=exposed_ms, wait=calls.wait_ms)


def collectives(
    state: RunState, figures: Callable[[str], OpFigures], exposed_ms: Sequence[float | None]
) -> list[CollectiveStats]:
    """The heaviest first; once steps are done, without what only start-up called.

    Args:
        state: The run's.
        figures: Those of an op, by its key in `state.ops`.
        exposed_ms: Exposed communication of each rank's first device.
    """
    found = [_collective(state, key, figures(key), exposed_ms) for key in state.ops]
    started = any(settled(rank.steps_done) for rank in state.ranks.values())
    called = [each for each in found if each.count_per_step or not started]
    return sorted(called, key=lambda each: -each.bytes_per_step)


def _collective(
    state: RunState, key: str, figures: OpFigures, exposed_ms: Sequence[float | None]
) -> CollectiveStats:
    op = state.ops[key]
    timed_ns, handed_in = figures.timed_ns, figures.moved
    if not timed_ns and op.timed_late:  # the last steps that were timed
        timed_ns, handed_in = _timed_late(state, key)
    seconds = timed_ns / 1e9
    # nccl-tests' size of an all-gather is the gathered array, of the others what is handed in.
    whole = op.ranks if op.op == "all_gather" else 1
    moved = handed_in * whole
    algbw = moved / seconds / 1e9 if seconds else None
    factor = bus_factor(op.op, op.ranks)
    exposed = figures.waited_ms
    if exposed is None and _only_busy(state, key):
        exposed = median(exposed_ms)
    return CollectiveStats(
        op=op.op,
        group=op.group,
        ranks=op.ranks,
        count_per_step=figures.calls / figures.cells if figures.cells else 0.0,
        bytes_per_step=figures.nbytes,
        latency_ms=Quantiles(quantile(op.latency_ms, 0.5), quantile(op.latency_ms, 0.95)),
        algbw_gbps=algbw,
        busbw_gbps=None if algbw is None or factor is None else algbw * factor,
        exposed_ms_per_step=exposed,
        last_arrival=_last_arrival(op),
    )


def _timed_late(state: RunState, key: str) -> tuple[int, float]:
    """Nanoseconds of an op's calls that were timed late, and the bytes handed in to them."""
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
    """Whether it is the only op that is called in more than a few steps.

    Then the ranks' exposed time as a whole is this op's; of several it can't be split.
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
        moved = route.by_step.over(settled(rank.steps_done))
        if moved:
            found.append(
                TransferStats(
                    kind=route.kind,
                    src=device_of(rank, route.src).name,
                    dst=device_of(rank, route.dst).name,
                    bytes_per_step=_typical_bytes(moved),
                    ms_per_step=median(t.timed_ns / 1e6 for t in moved) or 0.0,
                )
            )
    return found


def steps_in_common(state: RunState) -> int:
    """Steps that all ranks have done."""
    return min((rank.steps_done for rank in state.ranks.values() if rank.lanes), default=0)


def _captured(rank: RankState) -> bool:
    return rank.hello is not None and rank.hello.capture != "none"


def _typical_bytes(each: Sequence[Tally]) -> int:
    return int(median(tally.nbytes for tally in each) or 0)


def device_of(rank: RankState, index: int) -> DeviceInfo:
    """The device as its rank announced it, or as a mere number before that."""
    if rank.hello and index < len(rank.hello.devices):
        return rank.hello.devices[index]
    return DeviceInfo(f"device {index}", "")


def untimed(device: DeviceInfo, step: Step) -> bool:
    """Whether nothing is known of the step's phases, rather than that it had none.

    A CUDA device's are known in steps that were measured on the device only.
    """
    times = (step.forward_ns, step.backward_ns, step.optimizer_ns)
    return device.kind == "cuda" and all(ns is None for ns in times)
