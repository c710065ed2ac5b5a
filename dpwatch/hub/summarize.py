"""From a run's state to what people see: pure, and the only place where figures are derived."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import dpwatch
from dpwatch.hub.communication import (
    collectives,
    comm_times,
    device_of,
    milliseconds,
    steps_in_common,
    traffic,
    transfers,
    untimed,
)
from dpwatch.hub.series import WINDOW, known, median, quantile
from dpwatch.hub.snapshot import (
    SCHEMA,
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
    Summary,
)
from dpwatch.hub.stacks import seen
from dpwatch.hub.state import LaneState, RankState, RunState
from dpwatch.hub.stuck import is_stale
from dpwatch.hub.timeline import LANES, STEPS
from dpwatch.wire.messages import CATEGORIES, PHASES, ByCategory, DeviceInfo, Host, Step

STALL_S = 5.0
"""A rank has stalled after this long, or five typical steps, without a step."""

STALL_STEPS = 5

ABSENT_S = 2.0
"""How long an ended run waits for ranks that have not been heard of."""


def summary(runs: Sequence[Run]) -> Summary:
    """The `--json` object over these runs."""
    return Summary(SCHEMA, dpwatch.__version__, list(runs))


def view(state: RunState, connection: str = "live") -> RunView:
    """A run for a screen: its summary, its curves, its age."""
    lanes = _lanes(state)
    end_ns = state.end_ns if _ended(state) and state.end_ns else state.now_ns
    return RunView(
        run=summarize(state),
        history=History(
            loss=state.loss.freeze(),
            step_ms=state.step_ms.freeze(),
            rank_step_ms=tuple(lane.step_ms.freeze() for lane in lanes),
            rank_peak_bytes=tuple(lane.peak_bytes.freeze() for lane in lanes),
        ),
        elapsed_s=None if state.start_ns is None else max(0, end_ns - state.start_ns) / 1e9,
        connection=connection,
        lanes=tuple(_last_steps(state, lane) for lane in lanes[:LANES]),
        stacks=seen(state),
        output=state.output.freeze(),
        tells_output=sum(bool(r.hello and r.hello.tells_output) for r in state.ranks.values()),
    )


def _host(state: RunState, host: Host) -> HostView:
    """A host whose ranks have all ended has nothing more to say, and is not silent."""
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
    steps = tuple(lane.recent[-STEPS:])
    return LaneSteps(lane.rank, device_of(rank, lane.device).name, rank.host, steps)


def summarize(state: RunState) -> Run:
    """The run as `dpwatch.summary/1` has it."""
    hellos = [rank.hello for rank in state.ranks.values() if rank.hello]
    first = hellos[0] if hellos else None
    common = steps_in_common(state)
    rows = [_row(state, state.ranks[lane.rank], lane, common) for lane in _lanes(state)]
    devices = [device for hello in hellos for device in hello.devices if device.kind != "host"]
    told, why = _run_state(state, rows)
    return Run(
        run_id=state.run_id,
        title=first.title if first else "",
        strategy=first.strategy if first else "",
        world_size=max(state.world_size, len(devices)),
        hosts=sorted({rank.host for rank in state.ranks.values()}),
        backend=first.backend if first else "",
        devices=devices[0].kind if devices else "",
        model=Model(first.params, first.param_bytes) if first else Model(),
        state=told,
        reason=why,
        steps=max((row.steps for row in rows), default=0),
        total_steps=first.total_steps if first else None,
        cores=first.cores if first else None,
        loss=Loss(
            state.first_loss[1] if state.first_loss else None,
            state.last_loss[1] if state.last_loss else None,
        ),
        samples_per_s=_samples_per_s(state),
        ranks=rows,
        collectives=collectives(state),
        transfers=transfers(state),
        balance=_balance([row for row in rows if row.device_kind != "host"]),
        diagnoses=state.diagnoses,
        alerts=list(state.alerts),
        other_hosts=[_host(state, state.hosts[name]) for name in sorted(state.hosts)],
        note=_note(state),
    )


def _note(state: RunState) -> str:
    """What is missing of other hosts; nothing is where every rank is on this one after all."""
    if state.joined is None:
        return ""
    alone = state.joined.role == "alone"
    return "" if alone and len(state.ranks) >= state.world_size else state.joined.note


def _lanes(state: RunState) -> list[LaneState]:
    """Every device of every rank, those that have said nothing yet but their name too."""
    lanes: list[LaneState] = []
    for rank in state.ranks.values():
        named = len(rank.hello.devices) if rank.hello else 0
        lanes.extend(
            rank.lanes.get(device) or LaneState(rank.rank, device)
            for device in sorted({*rank.lanes, *range(named)})
        )
    return lanes


def _row(state: RunState, rank: RankState, lane: LaneState, common: int) -> Rank:
    steps = lane.recent[-WINDOW:]
    took_ms = [_took_ms(step) for step in steps]
    p50 = quantile(took_ms, 0.5)
    device = device_of(rank, lane.device)
    sent, received = traffic(state, rank, lane, common)
    return Rank(
        rank=rank.rank,
        device=device.name,
        device_kind=device.kind,
        host=rank.host,
        pid=rank.pid,
        state=_rank_state(state, rank, lane, p50),
        steps=lane.steps,
        dropped=rank.dropped,
        step_ms=StepTime(p50, quantile(took_ms, 0.95), took_ms[-1] if took_ms else None),
        phases_ms=_phases(steps, p50, device),
        comm_ms=comm_times(state, rank, lane, steps),
        memory=_memory(lane, device),
        sent_bytes_per_step=sent,
        received_bytes_per_step=received,
        gil_wait=_share(steps, "gil_wait_ns"),
        idle=_share(steps, "idle_ns"),
        runqueue_wait=_share(steps, "runqueue_ns"),
        gpu=GpuUse(lane.gpu.util, lane.gpu.temperature_c, lane.gpu.power_w)
        if lane.gpu
        else GpuUse(),
        missed_frames=rank.received.missing,
    )


def _took_ms(step: Step) -> float:
    return (step.end_ns - step.start_ns) / 1e6


def _phases(steps: Sequence[Step], p50_ms: float | None, device: DeviceInfo) -> PhaseTimes:
    """Median of each phase; `other` fills up to the median step, so that the whole sums to it.

    Medians of parts can exceed the median of the whole; then the parts are scaled to fit. Where
    nothing is known of the parts, nothing is known of `other`.
    """
    if p50_ms is None:
        return PhaseTimes()
    phases = {
        name: median(milliseconds(getattr(step, f"{name}_ns")) for step in steps) for name in PHASES
    }
    total = sum(known(phases.values()))
    scale = p50_ms / total if total > p50_ms else 1.0
    scaled = {name: None if ms is None else ms * scale for name, ms in phases.items()}
    unknown = all(untimed(device, step) for step in steps)
    return PhaseTimes(**scaled, other=None if unknown else max(0.0, p50_ms - total))


def _share(steps: Sequence[Step], name: str) -> float | None:
    """Share of wall time over the steps in which it was measured."""
    measured = [step for step in steps if getattr(step, name) is not None]
    wall_ns = sum(step.end_ns - step.start_ns for step in measured)
    return sum(getattr(step, name) for step in measured) / wall_ns if wall_ns else None


def _memory(lane: LaneState, device: DeviceInfo) -> MemoryUse:
    capacity = device.capacity_bytes
    if capacity is None and lane.gpu:
        capacity = lane.gpu.capacity_bytes
    if lane.memory is None or lane.highest is None:
        if lane.gpu and lane.gpu.used_bytes is not None:
            return MemoryUse(lane.gpu.used_bytes, None, capacity, "nvml")
        return MemoryUse(capacity_bytes=capacity)
    return MemoryUse(
        current_bytes=lane.memory.current_bytes,
        peak_bytes=lane.highest.peak_bytes,
        capacity_bytes=capacity,
        source=lane.highest.source,
        **_by_name(lane.highest.peak),
        at_step_end=Categories(**_by_name(lane.memory.current)),
    )


def _by_name(categories: ByCategory) -> dict[str, int | None]:
    return {name: getattr(categories, name) for name in CATEGORIES}


def _balance(rows: Sequence[Rank]) -> Balance:
    peaks = [row.memory.peak_bytes for row in rows]
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
    """Device 0 against the median of the others; None for a single device or an unknown."""
    if len(values) < 2 or any(value is None for value in values):
        return None
    rest = median(values[1:])
    return values[0] / rest if rest and values[0] is not None else None


def _samples_per_s(state: RunState) -> float | None:
    """Samples of all devices over the recent window, per second of its wall time."""
    rates = []
    for lane in itertools.chain.from_iterable(r.lanes.values() for r in state.ranks.values()):
        steps = [step for step in lane.recent[-WINDOW:] if step.samples is not None]
        # The first step also holds what start-up costs; a rate without it is the run's.
        steps = [step for step in steps if step.step] or steps
        if steps and (wall_ns := sum(step.end_ns - step.start_ns for step in steps)):
            rates.append(sum(step.samples or 0 for step in steps) * 1e9 / wall_ns)
    return sum(rates) if rates else None


def _ended(state: RunState) -> bool:
    """Whether every rank has said goodbye.

    Of a small run one rank may be done before another is heard of for the first time; after a
    while without, those known here are all (the others are on other hosts, or never came).
    """
    if not state.ranks or any(rank.bye is None for rank in state.ranks.values()):
        return False
    quiet_ns = state.now_ns - (state.end_ns or 0)
    return len(state.ranks) >= state.world_size or quiet_ns > ABSENT_S * 1e9


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


def _run_state(state: RunState, rows: Sequence[Rank]) -> tuple[str, str]:
    """The run's state and, where it is a bad one, a line that says why."""
    for rank in state.gone[:1]:
        if rank.bye:
            return rank.bye.state, f"rank {rank.rank}: {rank.bye.reason}"
    if _ended(state):
        return "finished", ""
    stalled = sorted({row.rank for row in rows if row.state == "stalled"})
    if stalled:
        names = ", ".join(str(rank) for rank in stalled)
        return "hung", f"no step for long from rank{'s' * (len(stalled) > 1)} {names}"
    silent = sorted({row.host for row in rows if row.state == "stale"})
    why = f"not heard of: {', '.join(silent)}; its ranks are shown as last seen" if silent else ""
    if any(row.steps for row in rows):
        return "running", why
    return "starting", ""
