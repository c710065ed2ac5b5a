"""The records a rank streams: one Struct a record type, msgpack arrays on the wire.

A frame is one `Batch`; its `records` are a tagged union told apart by the first element of
each array. `docs/protocol.md` is the specification. Rules that keep old and new peers talking:
a new field goes to the end and has a default, a field's type never changes, and anything else
is a new `PROTOCOL_VERSION`.

Times are nanoseconds of the sender's CLOCK_MONOTONIC unless a name says `wall`; sizes are bytes;
what was not measured is None, never 0.
"""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 2

CATEGORIES = ("params", "grads", "optimizer", "activations", "buffers", "temp", "gathered")
"""Memory categories, in the order `ByCategory` holds and screens draw them."""

PHASES = ("data", "h2d", "forward", "backward", "optimizer")
"""Measured phases of a step; what is left of the step is `other`."""


class DeviceInfo(msgspec.Struct, array_like=True, frozen=True):
    """One device a rank drives.

    Attributes:
        name: As shown: `vgpu:0`, `cuda:1`, `cpu`.
        kind: `virtual` (bytes held in host memory, compute on CPU cores), `cuda`, `cpu`, or `host`:
            host memory that takes part beside the devices and is none of them.
        capacity_bytes: Its memory, None where it has no limit of its own.
        description: What the hardware calls itself, such as `NVIDIA A100-SXM4-80GB`.
    """

    name: str
    kind: str
    capacity_bytes: int | None = None
    description: str = ""


class ByCategory(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bytes by memory category (PyTorch MemTracker's words, and `gathered` for unsharded params).

    `buffers` are module buffers and communication buckets, `temp` what lives for an operation or
    two. None: this category was not told apart by the source.
    """

    params: int | None = None
    grads: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    buffers: int | None = None
    temp: int | None = None
    gathered: int | None = None


class Record(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base of all records; `device` is an index into the rank's `Hello.devices`."""


class Hello(Record, frozen=True, tag="hello"):
    """Who a rank is. Sent first, on change, and every two seconds, so a late hub learns it.

    Attributes:
        world_size: Processes in the run (1 for `dp`, whose one process has several devices).
        local_rank: Rank within the host.
        strategy: `single`, `dp`, `ddp`, … or "" when nobody said and it can't be told.
        backend: `virtual`, `gloo`, `nccl`, … or "" with no communication.
        devices: What this rank drives; records point here by index.
        params: Elements of all parameters this rank's model has, None before the first forward.
        param_bytes: Their bytes.
        title: What a person would call the run, usually the script's name.
        total_steps: Steps the run intends to do, where known.
        cores: CPU cores this process may use.
        torch_version: `torch.__version__`.
        capture: How collectives are seen: `observer` (every one), `patch` (Python callers only),
            `none`.
        tells_output: What the process prints is told too (`Output`).
    """

    world_size: int
    local_rank: int
    strategy: str
    backend: str
    devices: list[DeviceInfo]
    params: int | None = None
    param_bytes: int | None = None
    title: str = ""
    total_steps: int | None = None
    cores: int | None = None
    torch_version: str = ""
    capture: str = "none"
    tells_output: bool = False


class Step(Record, frozen=True, gc=False, tag="step"):
    """One training step as one device saw it.

    Phases are wall time inside the step; `end_ns - start_ns` less their sum is `other`. Of a CUDA
    device all but `data_ns` are the device's own time, in steps where it was measured. The four
    thread times split the wall time by what the device's thread was doing: they sum to the
    step where all are known.

    Attributes:
        device: Index into `Hello.devices`.
        step: Counts optimizer steps from 0.
        start_ns: End of the step before (for the first: its first event).
        end_ns: End of the optimizer step.
        data_ns: Waiting for the next batch.
        h2d_ns: Copying it to the device.
        forward_ns: In the outermost module (with `dp` on device 0: scatter … gather).
        backward_ns: In backward (with `dp` on device 0: scatter of output gradients … reduce).
        optimizer_ns: In the optimizer's step.
        on_cpu_ns: The thread ran.
        runqueue_ns: It was ready and no core was free.
        gil_wait_ns: It was blocked where only the GIL can block it.
        idle_ns: It was blocked otherwise: waiting for data, for another device or rank.
        exposed_ns: Communication the thread waited for (not overlapped with compute).
        loss: The rank's own loss of this step (mean over its samples).
        samples: Batch elements this device processed in the step.
    """

    device: int
    step: int
    start_ns: int
    end_ns: int
    data_ns: int | None = None
    h2d_ns: int | None = None
    forward_ns: int | None = None
    backward_ns: int | None = None
    optimizer_ns: int | None = None
    on_cpu_ns: int | None = None
    runqueue_ns: int | None = None
    gil_wait_ns: int | None = None
    idle_ns: int | None = None
    exposed_ns: int | None = None
    loss: float | None = None
    samples: int | None = None


class Memory(Record, frozen=True, gc=False, tag="memory"):
    """A device's memory over one sampled step.

    Attributes:
        current: Held at the end of the step.
        peak: Held at the step's highest moment; its categories sum to `peak_bytes`.
        source: `ledger` (every storage followed), `cuda` (caching allocator), `nvml`, `rss`.
    """

    device: int
    step: int
    current_bytes: int
    peak_bytes: int
    current: ByCategory
    peak: ByCategory
    source: str


class Collective(Record, frozen=True, gc=False, tag="collective"):
    """One collective operation as one rank saw it.

    Attributes:
        step: The step it was issued in.
        op: c10d's name: `all_reduce`, `all_gather`, `reduce_scatter`, `broadcast`, …
        group: Name of the process group; `default` for the world.
        ranks: Size of the group.
        seq: Counts this group's collectives from 0 on this rank; equal numbers belong together.
        nbytes: Payload this rank hands in (for all_gather: its own part).
        issued_ns: When the rank entered the call.
        completed_ns: When it was done, None where not sampled or not known.
        blocked_ns: How long it held the caller up, in call and wait; None where not known (CUDA).
        device: Whose thread issued it.
        dtype: Element type of the payload.
        phase: Phase that thread was in, "" between phases and where nobody looked.
        into_ns: How long it had been in that phase.
        where: `file:line` of the script (not of torch) that issued it, "" where it can't be told.
        is_async: The caller got a `Work` to wait for later; None from C++.
        nbytes_out: Payload it gets (for all_gather: all parts).
    """

    step: int
    op: str
    group: str
    ranks: int
    seq: int
    nbytes: int
    issued_ns: int
    completed_ns: int | None = None
    blocked_ns: int | None = None
    dtype: str = ""
    device: int = 0
    phase: str = ""
    into_ns: int | None = None
    where: str = ""
    is_async: bool | None = None
    nbytes_out: int | None = None


class Duration(Record, frozen=True, tag="duration"):
    """How long a collective took, where that is known only after its `Collective` has left.

    At most one a call, and only of calls whose `Collective.completed_ns` is None (NCCL's).

    Attributes:
        step: As all up to `nbytes` in the call's `Collective`.
        duration_ns: On the device: from when its stream had come to it until it was done. What it
            waited there for other ranks counts, what it waited behind other kernels does not.
        device: Whose thread issued it.
    """

    step: int
    op: str
    group: str
    ranks: int
    seq: int
    nbytes: int
    duration_ns: int
    device: int = 0


class Transfer(Record, frozen=True, gc=False, tag="transfer"):
    """Copies between two devices of one process, summed over a step.

    Attributes:
        kind: `scatter`, `replicate`, `gather`, `scatter_grad`, `reduce` (dp), `pull`, `push`
            (parameter servers), `activation`, `activation_grad` (a model on two devices).
        src: Sending device, index into `Hello.devices`.
        dst: Receiving device.
        nbytes: Bytes copied.
        duration_ns: Time spent copying.
    """

    step: int
    kind: str
    src: int
    dst: int
    nbytes: int
    duration_ns: int


class Position(msgspec.Struct, array_like=True, frozen=True):
    """How far a rank has come in one process group: the last collective that it entered.

    Attributes:
        done: It is known to be over. False: under way, or nobody could tell.
        members: Ranks of the group, empty for the world and for groups of over 64.
    """

    group: str
    ranks: int
    seq: int
    op: str
    nbytes: int
    dtype: str
    issued_ns: int
    step: int
    done: bool
    where: str = ""
    members: list[int] = []


class Beat(Record, frozen=True, tag="beat"):
    """Sign of life from the probe's own thread, so it comes while the rank is stuck too.

    Attributes:
        step: Step under way.
        phase: Phase the training thread is in, "" between phases.
        rss_bytes: Resident memory of the process.
        gil_held: Share of time someone held the GIL, where a sampler is installed.
        where: `file:line function` of the script that the training thread is at.
        still_ns: How long nothing has moved: no step, phase, collective or line of Python, nor has
            the thread been on a core (which says nothing where it waits for an accelerator).
        positions: How far it has come in its process groups, the latest first, at most 16.
        stack: The training thread's Python frames, outermost first, at most 16; only once it has
            been still for two seconds.
    """

    step: int
    phase: str
    rss_bytes: int | None = None
    gil_held: float | None = None
    where: str = ""
    still_ns: int | None = None
    positions: list[Position] = []
    stack: list[str] = []


class Gpu(Record, frozen=True, gc=False, tag="gpu"):
    """A GPU as NVML sees it: the whole device, whoever uses it.

    Attributes:
        util: Share of time a kernel ran, 0..1.
        used_bytes: Device memory in use by all processes.
    """

    device: int
    util: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    used_bytes: int | None = None
    capacity_bytes: int | None = None


class Line(msgspec.Struct, array_like=True, frozen=True):
    """A line that a process has printed.

    Attributes:
        wall_ns: The sender's wall clock when the last of it was written.
        text: Without line break, control characters and escape sequences, cut where it is long.
    """

    wall_ns: int
    text: str


class Output(Record, frozen=True, tag="output"):
    """What a process has printed to one of its streams since the record before.

    Attributes:
        stream: `out` (standard output) or `err` (standard error).
        lines: Whole lines, the oldest first. Of one that was written over after a carriage return,
            as progress bars are, only how it was in the end.
        left_out: Lines before these that are not told: too many came at once.
        open: The line that is still being written, as it stands; it takes the place of the one told
            before. None: there is none.
    """

    stream: str
    lines: list[Line]
    left_out: int = 0
    open: Line | None = None


class Bye(Record, frozen=True, gc=False, tag="bye"):
    """A rank's end, as itself or its hub saw it.

    Attributes:
        state: `finished`, `failed` (it raised) or `lost` (the hub found the process gone).
        reason: One line for a person, "" when finished.
        exit: Exit code of the process, or minus the signal that killed it, where the hub could
            tell.
    """

    state: str
    reason: str = ""
    exit: int | None = None


class Tick(Record, frozen=True, gc=False, tag="tick"):
    """The hub's clock, once a second: lets a state notice that a rank has fallen silent."""


class Host(Record, frozen=True, tag="host"):
    """Another host of the run, as the head hub has it. From hubs only, with each tick.

    Attributes:
        host: Its name.
        heard_ns: When its hub was last heard of, by the head's clock.
        silent: That is too long ago: what is known of its ranks is old.
        offset_ns: What is added to its clock to have the head's; its ranks' times have it added.
        error_ns: How far off that may be.
        source: What it was estimated from: `collectives`, or `exchange` of messages.
        resent: How often its whole state had to be fetched anew, since frames had been lost or
            the connection had.
    """

    host: str
    heard_ns: int
    silent: bool = False
    offset_ns: int | None = None
    error_ns: int | None = None
    source: str = ""
    resent: int = 0


class Joined(Record, frozen=True, tag="joined"):
    """How this hub stands to those of other hosts. From hubs only, with each tick.

    Attributes:
        role: `head` (it has all hosts' ranks), `node` (its own; the head has them too) or `alone`
            (its own, and nobody else has them).
        head: The head's address.
        connected: Of a node, whether the head answers.
        note: A line for people where something is missing, "" where all is well.
    """

    role: str
    head: str = ""
    connected: bool = False
    note: str = ""


class ThreadStack(msgspec.Struct, array_like=True, frozen=True):
    """Where one Python thread is.

    Attributes:
        name: As `threading` has it, "" for a thread that Python has not started.
        training: Whether it is the thread that trains.
        tid: The kernel's number of it (as `top -H` and gdb show), None where Python has none.
        frames: `file:line function`, outermost first; of many the middle is left out, and a line
            that begins with `…` says so.
        theirs: Index of the innermost frame that is the user's own, None if none is.
    """

    name: str
    training: bool
    tid: int | None
    frames: list[str]
    theirs: int | None = None


class Stacks(Record, frozen=True, tag="stacks"):
    """A rank's answer to `Asked`: where each of its Python threads is.

    Attributes:
        asked: Number of the request.
        taken_ns: When.
        threads: The training thread first; dpwatch's own is not among them.
        left_out: Threads beyond those.
    """

    asked: int
    taken_ns: int
    threads: list[ThreadStack]
    left_out: int = 0


class Asked(Record, frozen=True, tag="asked"):
    """Said by the hub: it has asked ranks for their stacks. Also what the file says that asks them.

    Attributes:
        number: Counts the hub's requests from 1.
        ranks: Who is asked; none: every rank.
    """

    number: int
    ranks: list[int] = []


class Unanswered(Record, frozen=True, tag="unanswered"):
    """Said by the hub of a rank that should have answered.

    Attributes:
        rank: Who.
        pid: Its process.
        process: That process's state as the kernel has it (`T` stopped, `t` traced, `D` in the
            kernel, `R`, `S`), "" where it can't be told.
    """

    rank: int
    pid: int
    process: str = ""


AnyRecord = (
    Hello
    | Step
    | Memory
    | Collective
    | Duration
    | Transfer
    | Beat
    | Gpu
    | Output
    | Bye
    | Tick
    | Stacks
    | Asked
    | Unanswered
    | Host
    | Joined
)

HUB_RANK = -1
"""`Batch.rank` of what the hub itself adds to a run's stream."""


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One frame: records of one rank, in the order they happened.

    Attributes:
        version: `PROTOCOL_VERSION` of the sender; a hub refuses others.
        rank: The sender's rank, `HUB_RANK` for the hub.
        seq: Counts the sender's batches from 0.
        dropped: Records this sender has thrown away so far, since it never waits.
        mono_ns: Sender's CLOCK_MONOTONIC when it made the frame …
        wall_ns: … and its wall clock at that moment, to place `*_ns` times.
    """

    version: int
    run_id: str
    rank: int
    host: str
    pid: int
    seq: int
    dropped: int
    mono_ns: int
    wall_ns: int
    records: list[AnyRecord]
