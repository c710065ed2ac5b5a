"""What a run's ranks and devices say to each other, per step: from sums in the state to figures."""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.hub.series import WINDOW, Tally, median, quantile
from dpwatch.hub.snapshot import (
    CollectiveStats,
    CommTimes,
    LastArrival,
    Quantiles,
    TransferStats,
)
from dpwatch.hub.state import LaneState, OpState, RankState, RunState
from dpwatch.plan.traffic import bus_factor
from dpwatch.wire.messages import DeviceInfo, Step


def traffic(
    state: RunState, rank: RankState, lane: LaneState, common: int
) -> tuple[int | None, int | None]:
    """Bytes a step this device sends and receives: its copies, and its collectives' algorithm's.

    They are taken over steps that all ranks have done (`common`, see `steps_in_common`), so that
    devices compare; a rank that has gone far beyond them is not held back.
    """
    done = _steps_done(rank)
    steps = _settled(common if done - common < WINDOW // 4 else done)
    if not steps:
        return None, None
    routes = [route for route in state.routes.values() if route.rank == rank.rank]
    sent = sum(_typical_bytes(r.by_step.over(steps)) for r in routes if r.src == lane.device)
    received = sum(_typical_bytes(r.by_step.over(steps)) for r in routes if r.dst == lane.device)
    sent_by_step = [tally.wire_bytes for tally in lane.collectives.over(steps)]
    wire = int(median(sent_by_step) or 0)
    sent, received = sent + wire, received + wire
    seen = routes or state.ops or len(state.ranks) == 1 or _captured(rank)
    return (sent, received) if seen else (None, None)


def comm_times(
    state: RunState, rank: RankState, lane: LaneState, steps: Sequence[Step]
) -> CommTimes:
    """A device's time in communication per step: its copies, and what it issued of collectives.

    What of it compute waited for is known exactly where Python waited for each call (FSDP, ZeRO);
    where C++ did (DDP's reducer), or copies were made, the probe's own estimate of it counts.
    """
    done = _settled(_steps_done(rank))
    moved = [
        route.by_step
        for route in state.routes.values()
        if route.rank == rank.rank and lane.device in (route.src, route.dst)
    ]
    per_step = zip(*(each.over(done) for each in (*moved, lane.collectives)), strict=True)
    # Waits for other ranks are a rank's; they stand in the row of its first device.
    ops = _ops_of(state, rank) if lane.device == 0 else []
    waits = zip(*(op.by_rank[rank.rank].over(done) for op in ops), strict=True)
    exposed = None if moved else median(_waited_ms(t) for t in lane.collectives.over(done))
    if exposed is None:
        exposed = median(milliseconds(step.exposed_ns) for step in steps)
    total = median(_timed_ms(each) for each in per_step)
    if total is None and not moved:  # the last steps that were timed
        total = median(_timed_ms([tally]) for tally in lane.late.tallies.values())
    return CommTimes(
        total=total,
        exposed=exposed,
        wait=median(sum(t.wait_ns for t in each) / 1e6 for each in waits),
    )


def collectives(state: RunState) -> list[CollectiveStats]:
    """The heaviest first; once steps are done, without what only start-up called."""
    found = [_collective(state, op) for op in state.ops.values()]
    started = any(_settled(_steps_done(rank)) for rank in state.ranks.values())
    called = [each for each in found if each.count_per_step or not started]
    return sorted(called, key=lambda each: -each.bytes_per_step)


def _collective(state: RunState, op: OpState) -> CollectiveStats:
    cells = [
        tally
        for rank, by_step in op.by_rank.items()
        if rank in state.ranks
        for tally in by_step.over(_settled(_steps_done(state.ranks[rank])))
    ]
    timed = [tally for tally in cells if tally.timed_calls] or [  # else the last that were timed
        tally for late in op.late.values() for tally in late.tallies.values()
    ]
    seconds = sum(tally.timed_ns for tally in timed) / 1e9
    # nccl-tests' size of an all-gather is the gathered array, of the others what is handed in.
    whole = op.ranks if op.op == "all_gather" else 1
    moved = sum(t.nbytes * t.timed_calls / t.calls for t in timed) * whole
    algbw = moved / seconds / 1e9 if seconds else None
    factor = bus_factor(op.op, op.ranks)
    return CollectiveStats(
        op=op.op,
        group=op.group,
        ranks=op.ranks,
        count_per_step=sum(tally.calls for tally in cells) / len(cells) if cells else 0.0,
        bytes_per_step=_typical_bytes(cells),
        latency_ms=Quantiles(quantile(op.latency_ms, 0.5), quantile(op.latency_ms, 0.95)),
        algbw_gbps=algbw,
        busbw_gbps=None if algbw is None or factor is None else algbw * factor,
        exposed_ms_per_step=_exposed_ms(state, op, cells),
        last_arrival=_last_arrival(op),
    )


def _exposed_ms(state: RunState, op: OpState, cells: Sequence[Tally]) -> float | None:
    """How long a rank typically waited for these calls in a step.

    Known where each call was waited for in Python. Else it is the ranks' exposed time as a whole,
    which can't be split where a run has several ops in its steps.
    """
    waited = median(_waited_ms(tally) for tally in cells)
    if waited is not None:
        return waited
    busy = [o for o in state.ops.values() if any(len(b.tallies) > 2 for b in o.by_rank.values())]
    if busy != [op]:
        return None
    return median(
        median(milliseconds(step.exposed_ns) for step in rank.lanes[0].recent[-WINDOW:])
        for rank in state.ranks.values()
        if 0 in rank.lanes
    )


def _waited_ms(tally: Tally) -> float | None:
    """A step's waits for collectives, known only if each call's caller is known to have waited."""
    if not tally.calls or tally.waited_calls < tally.calls:
        return None
    return tally.waited_ns / 1e6


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
        tallies = route.by_step.over(_settled(_steps_done(rank)))
        if tallies:
            found.append(
                TransferStats(
                    kind=route.kind,
                    src=device_of(rank, route.src).name,
                    dst=device_of(rank, route.dst).name,
                    bytes_per_step=_typical_bytes(tallies),
                    ms_per_step=median(t.timed_ns / 1e6 for t in tallies) or 0.0,
                )
            )
    return found


def _settled(steps_done: int) -> range:
    """Steps that per-step figures are taken over: complete, recent, and not the first.

    The first step is unlike the rest: it makes optimizer state, and DDP its first buckets.
    The newest may still miss a record that comes from another thread.
    """
    end = steps_done - 1 if steps_done > 2 else steps_done
    return range(max(int(end > 1), end - WINDOW // 2), end)


def _steps_done(rank: RankState) -> int:
    return max((lane.steps for lane in rank.lanes.values()), default=0)


def steps_in_common(state: RunState) -> int:
    """Steps that all ranks have done."""
    return min((_steps_done(rank) for rank in state.ranks.values() if rank.lanes), default=0)


def _ops_of(state: RunState, rank: RankState) -> list[OpState]:
    return [op for op in state.ops.values() if rank.rank in op.by_rank]


def _captured(rank: RankState) -> bool:
    return rank.hello is not None and rank.hello.capture != "none"


def _typical_bytes(tallies: Sequence[Tally]) -> int:
    return int(median(tally.nbytes for tally in tallies) or 0)


def _timed_ms(tallies: Sequence[Tally]) -> float | None:
    """A step's communication time, known only if each of its calls was timed."""
    if not any(t.calls for t in tallies) or any(t.timed_calls < t.calls for t in tallies):
        return None
    return sum(t.timed_ns for t in tallies) / 1e6


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


def milliseconds(ns: int | None) -> float | None:
    """Nanoseconds as milliseconds, None of None."""
    return None if ns is None else ns / 1e6
