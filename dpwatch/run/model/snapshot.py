"""A run at one moment: the frozen types that both screens and JSON read.

`Summary` and everything below it is the object `dpwatch.summary/1` that `--json` prints, field by
field (docs/json.md). `RunView` adds what only a screen needs. Units: `_bytes` bytes, `_ms`
milliseconds, shares 0..1, None unknown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dpwatch.run.model.largest_batch import LargestBatch
from dpwatch.run.model.stacks import RankStacks
from dpwatch.wire.messages import Step

SCHEMA = "dpwatch.summary/1"


class Quantiles(msgspec.Struct, frozen=True):
    """Median and 95th percentile over the recent window, None before the first value."""

    p50: float | None = None
    p95: float | None = None


class StepTime(msgspec.Struct, frozen=True):
    """Step time: quantiles and mean over the recent window, and the last step's."""

    p50: float | None = None
    p95: float | None = None
    last: float | None = None
    mean: float | None = None


class PhaseTimes(msgspec.Struct, frozen=True):
    """Typical milliseconds per phase; they sum to `step_ms.p50`, gaps are in `other`."""

    data: float | None = None
    h2d: float | None = None
    forward: float | None = None
    backward: float | None = None
    optimizer: float | None = None
    other: float | None = None


class CommTimes(msgspec.Struct, frozen=True):
    """Communication per step: means, overlapping calls counted once.

    `total` is the time with any call in flight, `exposed` what compute waited for
    (`exposed_share` of the step), `wait` the time spent waiting for later ranks.
    """

    total: float | None = None
    exposed: float | None = None
    wait: float | None = None
    exposed_share: float | None = None


class Categories(msgspec.Struct, frozen=True):
    """Bytes by memory category."""

    params: int | None = None
    grads: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    buffers: int | None = None
    temp: int | None = None
    gathered: int | None = None


class MemoryUse(msgspec.Struct, frozen=True):
    """A device's memory; categories are bytes at the moment of the peak.

    Attributes:
        peak_of: What the peak is of: `step` (the highest of the sampled steps, each category as it
            was at that moment) or `process` (the highest since the process began; only categories
            that are always present are known).
        at_step_end: The categories between steps, when gradients are complete and activations
            freed.
        heap_bytes: What malloc has allocated to the process, at the end of a step.
        activations_estimate: Growth of memory in use from the start of forward to that of backward.
        activations_error: The bound on its error, None if unknown.
    """

    current_bytes: int | None = None
    peak_bytes: int | None = None
    capacity_bytes: int | None = None
    source: str | None = None
    params: int | None = None
    grads: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    buffers: int | None = None
    temp: int | None = None
    gathered: int | None = None
    at_step_end: Categories = Categories()
    peak_of: str | None = None
    heap_bytes: int | None = None
    activations_estimate: int | None = None
    activations_error: int | None = None


class GpuUse(msgspec.Struct, frozen=True):
    """What NVML reports about the device."""

    util: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Rank(msgspec.Struct, frozen=True):
    """One row: a rank, or one device of a rank that drives several (`dp`).

    `device_kind` is that of `wire.messages.DeviceInfo`; a row of kind `host` is not a device, and
    is not part of any balance.

    `state` is one of starting, running, finished, failed, stalled (no step for a long time), lost,
    stale (no report from its host: last known values). `missed_frames` never arrived. `unseen`
    names communication that may happen but is not observed, so that sent and received bytes are
    unknown; "" if there is none. `reason` says how it ended, if not normally; `exit` is its
    process's exit code, or minus the signal that killed it, None while it runs or if unknown.
    """

    rank: int
    device: str
    host: str
    pid: int
    state: str
    steps: int
    dropped: int
    step_ms: StepTime = StepTime()
    phases_ms: PhaseTimes = PhaseTimes()
    comm_ms: CommTimes = CommTimes()
    memory: MemoryUse = MemoryUse()
    sent_bytes_per_step: int | None = None
    received_bytes_per_step: int | None = None
    gil_wait: float | None = None
    idle: float | None = None
    runqueue_wait: float | None = None
    gpu: GpuUse = GpuUse()
    device_kind: str = ""
    missed_frames: int = 0
    unseen: str = ""
    reason: str = ""
    exit: int | None = None


class LastArrival(msgspec.Struct, frozen=True):
    """The rank that is last most often, in what share of calls, and how long others waited."""

    rank: int
    share: float
    wait_ms: float


class CollectiveStats(msgspec.Struct, frozen=True):
    """All calls of one op in one group; bandwidths in 10⁹ bytes per second, as in nccl-tests.

    For messages (`send`, `recv`) `ranks` is 2. `count_per_step` and `bytes_per_step` are means over
    the last steps, None before the first step is complete.
    """

    op: str
    group: str
    ranks: int
    count_per_step: float | None
    bytes_per_step: int | None
    latency_ms: Quantiles = Quantiles()
    algbw_gbps: float | None = None
    busbw_gbps: float | None = None
    exposed_ms_per_step: float | None = None
    last_arrival: LastArrival | None = None


class IssuerStats(msgspec.Struct, frozen=True):
    """One kind of collective issued by a framework's function, as `wire.Issuer` reports it.

    `calls` and `bytes` are totals so far of one rank, the group's first; the values per step are
    means over all steps so far, None before the first step is complete. `purpose` is "" if only the
    function is known.
    """

    framework: str
    function: str
    purpose: str
    op: str
    group: str
    ranks: int
    dtype: str
    calls: int
    bytes: int
    count_per_step: float | None
    bytes_per_step: int | None
    first_step: int
    last_step: int


class MessageStats(msgspec.Struct, frozen=True):
    """What one rank sends another point to point, means per step of the sender.

    As the receiver counts it, if the sender reports nothing.
    """

    src: int
    dst: int
    count_per_step: float
    bytes_per_step: int


class TransferStats(msgspec.Struct, frozen=True):
    """Copies between two devices of one process (`dp`), per step."""

    kind: str
    src: str
    dst: str
    bytes_per_step: int
    ms_per_step: float


class Balance(msgspec.Struct, frozen=True):
    """How evenly the devices are loaded; 1.0 is even, None unknown."""

    peak_max_over_min: float | None = None
    peak_device0_over_median: float | None = None
    traffic_device0_over_median: float | None = None


SEVERITIES = ("info", "warning", "critical")
"""How bad a diagnosis is, the worst last."""

ENDED = ("finished", "failed", "lost")
"""Final states of runs and ranks."""


class Diagnosis(msgspec.Struct, frozen=True):
    """A problem, or something worth knowing, in words, with its evidence.

    `severity` is info, warning or critical; `text` says what, why and what to do.
    """

    kind: str
    severity: str
    ranks: list[int]
    since_step: int
    text: str
    evidence: dict[str, Any]


class Alert(msgspec.Struct, frozen=True):
    """A diagnosis that is or was active: when, and its last text.

    `severity` is its worst so far. `began_s` and `ended_s` are seconds since the epoch by the wall
    clock of the run's host; `ended_s` is None while it is active.
    """

    kind: str
    severity: str
    ranks: list[int]
    since_step: int
    text: str
    began_s: float
    ended_s: float | None = None


class Model(msgspec.Struct, frozen=True):
    """The model's parameters: elements and bytes."""

    params: int | None = None
    param_bytes: int | None = None


class Loss(msgspec.Struct, frozen=True):
    """Mean loss over all ranks, of the first and the last step whose loss was read."""

    first: float | None = None
    last: float | None = None


class HostView(msgspec.Struct, frozen=True):
    """One of the run's other hosts, as the head hub sees it.

    Attributes:
        silent_s: Seconds since its hub's last report, None while it reports.
        clock_offset_ms: Added to its clock to get the head's; applied to all times shown.
        clock_error_ms: The bound on its error.
        clock_source: `collectives`, `exchange`, "" while unknown.
        resent: How often its state had to be fetched again.
    """

    host: str
    silent_s: float | None = None
    clock_offset_ms: float | None = None
    clock_error_ms: float | None = None
    clock_source: str = ""
    resent: int = 0


class Run(msgspec.Struct, frozen=True):
    """One run. `state` is starting, running, finished, failed, hung or lost.

    `other_hosts` are all but the head's own, as the head sees them. `note` says what is missing in
    a run over several hosts and what to do, or that its command failed though the run did not; else
    "". `began_s` is the wall clock at its first report, `command_exit` the exit code of the
    `dpwatch run` command that started it, or minus the signal that killed it. `issuers` are
    frameworks' functions and what they have issued, most bytes first.
    """

    run_id: str
    title: str
    strategy: str
    world_size: int
    hosts: list[str]
    backend: str
    devices: str
    model: Model
    state: str
    reason: str
    steps: int
    total_steps: int | None
    cores: int | None
    loss: Loss
    samples_per_s: float | None
    ranks: list[Rank]
    collectives: list[CollectiveStats]
    transfers: list[TransferStats]
    balance: Balance
    diagnoses: list[Diagnosis]
    alerts: list[Alert] = []
    other_hosts: list[HostView] = []
    note: str = ""
    messages: list[MessageStats] = []
    began_s: float = 0.0
    command_exit: int | None = None
    issuers: list[IssuerStats] = []


class GpuProcess(msgspec.Struct, frozen=True):
    """A process on a GPU; `name` is "" if the system hides it."""

    pid: int
    name: str
    used_bytes: int | None = None


class HostGpu(msgspec.Struct, frozen=True):
    """A GPU as NVML or nvidia-smi reports it; `util` is the share of time a kernel ran, 0..1.

    `host` is its host, as named to `dpwatch ssh`; "" for this host.
    """

    index: int
    name: str
    util: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    used_bytes: int | None = None
    capacity_bytes: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    host: str = ""


class Summary(msgspec.Struct, frozen=True):
    """The object that `--json` prints; `gpus` as in `Snapshot`."""

    schema: str
    version: str
    runs: list[Run]
    gpus: list[HostGpu] = []


class Curve(msgspec.Struct, frozen=True):
    """A bounded history: `values[i]` was measured in step `steps[i]`."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


class History(msgspec.Struct, frozen=True):
    """Curves over the whole run, thinned to a few hundred points each.

    `step_ms` and `samples_per_s` are the run's (its slowest rank's); `rank_step_ms` and
    `rank_peak_bytes` follow the order of `Run.ranks`.
    """

    loss: Curve = Curve()
    step_ms: Curve = Curve()
    rank_step_ms: tuple[Curve, ...] = ()
    rank_peak_bytes: tuple[Curve, ...] = ()


LANES = 64
"""Rows whose last steps a view has: the first ones …"""

LANE_STEPS = 32
"""… and how many of each."""


class LaneSteps(msgspec.Struct, frozen=True):
    """The last steps of one row of `Run.ranks`, as its rank sent them; times are its host's."""

    rank: int
    device: str
    host: str
    steps: tuple[Step, ...] = ()


class Printed(msgspec.Struct, frozen=True, array_like=True):
    """A line that a rank printed to `stream`, `out` or `err`; its host's wall clock in ns."""

    wall_ns: int
    stream: str
    text: str


class RankOutput(msgspec.Struct, frozen=True):
    """The last lines of one rank's output.

    Attributes:
        lines: Oldest first; a line still being written comes last.
        left_out: Lines that its process skipped because too many came at once.
        let_go: Earlier lines that are no longer kept.
    """

    rank: int
    lines: tuple[Printed, ...] = ()
    left_out: int = 0
    let_go: int = 0


class RunView(msgspec.Struct, frozen=True):
    """A run for a screen.

    Attributes:
        run: The same object that `--json` prints.
        history: Its curves.
        elapsed_s: From the start of the first step until now, or until the end.
        connection: `live`, `stale` (no report from its hub), `closed` (hub gone; last state).
        largest_batch: The largest batch that fits, if it was searched for.
        lanes: The last steps of the first rows, in the order of `Run.ranks`.
        stacks: Its ranks' Python stacks, one entry per rank; none before a request.
        output: The last lines of each rank that has printed any.
        tells_output: How many ranks' output is captured.
        ssh_host: The host it is watched on over ssh, as the user named it; "" for this one.
    """

    run: Run
    history: History = History()
    elapsed_s: float | None = None
    connection: str = "live"
    largest_batch: LargestBatch | None = None
    lanes: tuple[LaneSteps, ...] = ()
    stacks: tuple[RankStacks, ...] = ()
    output: tuple[RankOutput, ...] = ()
    tells_output: int = 0
    ssh_host: str = ""


class Progress(msgspec.Struct, frozen=True):
    """Progress of a session that trains under several strategies in turn.

    Attributes:
        names: What it runs, in order.
        done: How many of them have ended; the next one is running.
        within: Progress within that one, if its run doesn't report it.
        metric: The metric of Compare to show when all have ended.
        lesson: What they show together, once all have ended.
    """

    names: tuple[str, ...]
    done: int
    within: str = ""
    metric: str = ""
    lesson: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a viewer knows at one moment.

    Attributes:
        runs: Newest first; ended runs stay with their last state.
        wall_s: Viewer's wall clock, seconds since the epoch.
        notice: Lines for the user, such as why there is nothing to show; "" when all is well.
        progress: Of the session that starts the runs, if there is one.
        search: Of the search for the largest batches that follows them, if there is one.
        gpus: This host's GPUs, if NVML answers, whether a run uses them or not; over ssh those of
            hosts without a run.
        places: The directories that are searched for this host's runs.
    """

    runs: tuple[RunView, ...]
    wall_s: float
    notice: str = ""
    progress: Progress | None = None
    search: Progress | None = None
    gpus: tuple[HostGpu, ...] = ()
    places: tuple[str, ...] = ()
