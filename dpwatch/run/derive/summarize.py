"""Summarizes a run's state as the `Run` that the JSON output and the screens read."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from dpwatch.quantiles import known, median
from dpwatch.run.derive.communication import (
    collectives,
    comm_times,
    device_of,
    messages,
    steps_in_common,
    traffic,
    transfers,
)
from dpwatch.run.derive.issuers import issuers
from dpwatch.run.derive.lane_metrics import figures_of
from dpwatch.run.derive.rank_metrics import CallFigures, Figures, StepFigures
from dpwatch.run.derive.stacks import stack_views
from dpwatch.run.derive.verdict import command_end, ended, verdict
from dpwatch.run.derive.wait_graph import is_stale
from dpwatch.run.model.snapshot import (
    LANE_STEPS,
    LANES,
    Balance,
    Categories,
    GpuUse,
    History,
    HostView,
    LaneSteps,
    Loss,
    MemoryUse,
    Model,
    PhaseTimes,
    Rank,
    Run,
    RunView,
    StepTime,
)
from dpwatch.run.state.flush import flush
from dpwatch.run.state.parts import OPEN_LOSSES, LaneState, RankState, Route
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import CATEGORIES, PHASES, ByCategory, DeviceInfo, Gpu, Host, Memory

STALL_S = 5.0
"""A rank without a step for this long, and for `STALL_STEPS` median steps, has stalled."""

STALL_STEPS = 5

LOSSES_BY = 10
"""By this step a rank that has losses has reported one: some first steps are always sampled."""

MEMORIES = 8192
"""Cached `MemoryUse` objects; memory is sampled rarely, so most are reused."""

UNSEEN = "its process went on to other work; whether this run raised an error is unknown"
"""Note for a pool's task, until the command has ended."""


def view(
    state: RunState,
    connection: str = "live",
    run: Run | None = None,
) -> RunView:
    """The view of a run: its summary, curves, recent steps, stacks and output.

    Args:
        state: State of the run.
        connection: See `RunView`.
        run: Its summary, computed if None.
    """
    flush(state)
    lanes = rows_of(state)
    return RunView(
        run=summarize(state) if run is None else run,
        history=_history(state, lanes),
        elapsed_s=elapsed_s(state),
        connection=connection,
        lanes=tuple(_last_steps(state, lane) for lane in lanes[:LANES]),
        stacks=stack_views(state),
        output=state.output.freeze(),
        tells_output=tells_output(state),
    )


def elapsed_s(state: RunState) -> float | None:
    """Seconds from the start of the first step until now or the end; None before it."""
    end_ns = state.end_ns if ended(state) and state.end_ns else state.now_ns
    return None if state.start_ns is None else max(0, end_ns - state.start_ns) / 1e9


def tells_output(state: RunState) -> int:
    """Number of ranks whose output is captured."""
    return sum(bool(rank.hello and rank.hello.tells_output) for rank in state.ranks.values())


def _history(state: RunState, lanes: Sequence[LaneState]) -> History:
    return History(
        loss=state.loss.freeze(),
        step_ms=state.step_ms.freeze(),
        rank_step_ms=tuple(lane.step_ms.freeze() for lane in lanes),
        rank_peak_bytes=tuple(lane.peak_bytes.freeze() for lane in lanes),
    )


def _host(state: RunState, host: Host) -> HostView:
    """Summarizes another host; one whose ranks have all ended does not count as silent."""
    ranks = [rank for rank in state.ranks.values() if rank.host == host.host]
    silent = host.silent and not (ranks and all(rank.bye for rank in ranks))
    return HostView(
        host=host.host,
        silent_s=max(0, state.now_ns - host.heard_ns) / 1e9 if silent else None,
        clock_offset_ms=None if host.offset_ns is None else host.offset_ns / 1e6,
        clock_error_ms=None if host.error_ns is None else host.error_ns / 1e6,
        clock_source=host.source,
        resent=host.resent,
    )


def _last_steps(state: RunState, lane: LaneState) -> LaneSteps:
    rank = state.ranks[lane.rank]
    steps = lane.recent.newest(lane.device, LANE_STEPS)
    return LaneSteps(lane.rank, device_of(rank, lane.device).name, rank.host, steps)


def summarize(state: RunState) -> Run:
    """Summarizes a run, as in `dpwatch.summary/1`."""
    flush(state)
    hellos = [rank.hello for rank in state.ranks.values() if rank.hello]
    first = hellos[0] if hellos else None
    lanes = rows_of(state)
    common = steps_in_common(state)
    figures = figures_of(state, lanes, common)
    rows = _rows(state, lanes, figures, common)
    devices = [device for hello in hellos for device in hello.devices if device.kind != "host"]
    run_state, why = verdict(state, rows)
    return Run(
        run_id=state.run_id,
        title=first.title if first else "",
        strategy=first.strategy if first else "",
        world_size=max(state.world_size, len(devices)),
        hosts=sorted({rank.host for rank in state.ranks.values()}),
        backend=first.backend if first else "",
        devices=devices[0].kind if devices else "",
        model=Model(first.params, first.param_bytes) if first else Model(),
        state=run_state,
        reason=why,
        steps=max((row.steps for row in rows), default=0),
        total_steps=first.total_steps if first else None,
        cores=first.cores if first else None,
        loss=_loss(state),
        samples_per_s=_samples_per_s(figures.steps),
        ranks=rows,
        collectives=collectives(state, figures.op, _exposed(lanes, figures.steps)),
        transfers=transfers(state),
        balance=_balance([row for row in rows if row.device_kind != "host"]),
        diagnoses=state.diagnoses,
        alerts=list(state.alerts),
        other_hosts=[_host(state, state.others[name]) for name in sorted(state.others)],
        note=_note(state, run_state),
        messages=messages(state),
        began_s=state.began_s,
        command_exit=state.command.exit if state.command else None,
        issuers=issuers(state),
    )


def _note(state: RunState, run_state: str) -> str:
    """A note on what the summary does not show.

    Problems with other hosts are left out if every rank is on this host.
    """
    if state.claims:
        return state.claims
    code = None if state.command is None else state.command.exit
    if run_state == "finished" and code:
        return f"this run finished; {command_end(code)} afterwards"
    if (
        run_state == "finished"
        and code is None
        and any(_has_idled(r) for r in state.ranks.values())
    ):
        return UNSEEN
    if state.joined is None:
        return ""
    alone = state.joined.role == "alone"
    return "" if alone and len(state.ranks) >= state.world_size else state.joined.note


def _has_idled(rank: RankState) -> bool:
    return rank.bye is not None and rank.bye.then == "idle"


def rows_of(state: RunState) -> list[LaneState]:
    """Every device of every rank, including those known only by name."""
    lanes: list[LaneState] = []
    for rank in state.ranks.values():
        named = len(rank.hello.devices) if rank.hello else 0
        lanes.extend(
            rank.lanes.get(device) or LaneState(rank.rank, device)
            for device in sorted({*rank.lanes, *range(named)})
        )
    return lanes


def _rows(state: RunState, lanes: Sequence[LaneState], figures: Figures, common: int) -> list[Rank]:
    routes: dict[int, list[Route]] = {}
    for route in state.routes.values():
        routes.setdefault(route.rank, []).append(route)
    return [
        _row(state, lane, routes.get(lane.rank, ()), steps, calls, common)
        for lane, steps, calls in zip(lanes, figures.steps, figures.calls, strict=True)
    ]


def _row(
    state: RunState,
    lane: LaneState,
    routes: Sequence[Route],
    steps: StepFigures,
    calls: CallFigures,
    common: int,
) -> Rank:
    rank = state.ranks[lane.rank]
    device = device_of(rank, lane.device)
    sent, received = traffic(state, rank, lane, routes, calls, common)
    gil_wait, idle, runqueue_wait = steps.shares
    return Rank(
        rank=rank.rank,
        device=device.name,
        device_kind=device.kind,
        host=rank.host,
        pid=rank.pid,
        state=_rank_state(state, rank, lane, steps.p50_ms),
        steps=_steps(rank, lane),
        dropped=rank.dropped + rank.refused + rank.missed,
        step_ms=StepTime(steps.p50_ms, steps.p95_ms, steps.last_ms, steps.mean_ms),
        phases_ms=_phases(steps, device),
        comm_ms=comm_times(rank, lane, routes, calls, steps),
        memory=_memory(rank, lane, device),
        sent_bytes_per_step=sent,
        received_bytes_per_step=received,
        gil_wait=gil_wait,
        idle=idle,
        runqueue_wait=runqueue_wait,
        gpu=_gpu(lane.gpu),
        missed_frames=rank.received.missing,
        unseen=rank.hello.unseen if rank.hello else "",
        reason=rank.bye.reason if rank.bye else "",
        exit=rank.bye.exit if rank.bye else None,
    )


def _steps(rank: RankState, lane: LaneState) -> int:
    """Steps completed; a killed rank may have completed more than it reported."""
    unreported = rank.bye.step if rank.bye and lane.device == 0 else None
    return max(lane.steps, unreported or 0)


def _phases(steps: StepFigures, device: DeviceInfo) -> PhaseTimes:
    """Median of each phase, with `other` as the rest, so that they sum to the median step.

    If the medians sum to more than the median step, they are scaled down. If no phase is known,
    `other` is unknown too.
    """
    p50_ms = steps.p50_ms
    if p50_ms is None:
        return PhaseTimes()
    total = sum(known(steps.phases_ms))
    scale = p50_ms / total if total > p50_ms else 1.0
    scaled = [None if ms is None else ms * scale for ms in steps.phases_ms]
    unknown = device.kind == "cuda" and not steps.timed
    other = None if unknown else max(0.0, p50_ms - total)
    return PhaseTimes(**dict(zip(PHASES, scaled, strict=True)), other=other)


def _exposed(lanes: Sequence[LaneState], steps: Sequence[StepFigures]) -> list[float | None]:
    return [s.exposed_ms for lane, s in zip(lanes, steps, strict=True) if lane.device == 0]


def _memory(rank: RankState, lane: LaneState, device: DeviceInfo) -> MemoryUse:
    capacity = device.capacity_bytes
    if capacity is None and lane.gpu:
        capacity = lane.gpu.capacity_bytes
    if lane.memory is None or lane.highest is None:
        if lane.gpu and lane.gpu.used_bytes is not None:
            return MemoryUse(lane.gpu.used_bytes, None, capacity, "nvml")
        return MemoryUse(capacity_bytes=capacity)
    peak = lane.highest.peak_bytes
    if lane.highest.source == "rss" and rank.beat is not None:  # newer than the last sample
        peak = max(peak, rank.beat.peak_rss_bytes or 0)
    return _memory_use(lane.memory, lane.highest, peak, capacity)


@functools.lru_cache(MEMORIES)
def _memory_use(memory: Memory, highest: Memory, peak: int, capacity: int | None) -> MemoryUse:
    return MemoryUse(
        current_bytes=memory.current_bytes,
        peak_bytes=peak,
        capacity_bytes=capacity,
        source=highest.source,
        **_by_name(highest.peak),
        at_step_end=Categories(**_by_name(memory.current)),
        peak_of="step" if highest.source == "ledger" else "process",
        heap_bytes=memory.heap_bytes,
        activations_estimate=memory.activations_estimate,
        activations_error=memory.activations_error,
    )


def _by_name(categories: ByCategory) -> dict[str, int | None]:
    return {name: getattr(categories, name) for name in CATEGORIES}


def _gpu(gpu: Gpu | None) -> GpuUse:
    return GpuUse() if gpu is None else GpuUse(gpu.util, gpu.temperature_c, gpu.power_w)


def _balance(rows: Sequence[Rank]) -> Balance:
    # Resident sizes include libraries, so their ratio would look more balanced than it is.
    peaks = [None if row.memory.source == "rss" else row.memory.peak_bytes for row in rows]
    traffic = [
        None
        if row.sent_bytes_per_step is None or row.received_bytes_per_step is None
        else row.sent_bytes_per_step + row.received_bytes_per_step
        for row in rows
    ]
    measured = known(peaks)
    even = len(measured) == len(rows) > 1 and min(measured) > 0
    return Balance(
        peak_max_over_min=max(measured) / min(measured) if even else None,
        peak_device0_over_median=_first_over_rest(peaks),
        traffic_device0_over_median=_first_over_rest(traffic),
    )


def _first_over_rest(values: Sequence[int | None]) -> float | None:
    """Device 0 over the median of the others; None for a single device or an unknown value."""
    if len(values) < 2 or any(value is None for value in values):
        return None
    rest = median(values[1:])
    return values[0] / rest if rest and values[0] is not None else None


def _loss(state: RunState) -> Loss:
    """Mean loss over all ranks, or over those that have losses, as in a pipeline.

    In the latter case only recent steps are kept, so the first loss becomes unknown after a while.
    """
    if state.first_loss and state.last_loss:
        return Loss(state.first_loss[1], state.last_loss[1])
    having = [r for r, rank in state.ranks.items() if rank.good_loss or rank.bad_loss]
    others = [rank.lanes.get(0) for r, rank in state.ranks.items() if r not in having]
    if len(state.ranks) < state.world_size or any(
        lane is None or lane.steps < LOSSES_BY for lane in others
    ):
        return Loss()  # others may still report one
    whole = [step for step, each in state.losses.items() if each.count == len(having)]
    means = {step: state.losses[step].total / len(having) for step in whole}
    first = means[min(whole)] if whole and len(state.losses) < OPEN_LOSSES else None
    return Loss(first, means[max(whole)] if whole else None)


def _samples_per_s(steps: Sequence[StepFigures]) -> float | None:
    """Samples per second of all devices, over their recent steps."""
    rates = known(each.samples_per_s for each in steps)
    return sum(rates) if rates else None


def _rank_state(state: RunState, rank: RankState, lane: LaneState, p50_ms: float | None) -> str:
    if rank.bye:
        return rank.bye.state
    if is_stale(state, rank):
        return "stale"
    if not lane.steps:
        return "starting"
    patience_s = max(STALL_S, STALL_STEPS * (p50_ms or 0) / 1e3)
    stalled = state.now_ns - rank.progress_ns > patience_s * 1e9
    return "stalled" if stalled else "running"
