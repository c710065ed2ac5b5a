"""The records a rank streams: one Struct a record type, msgpack arrays on the wire.

A frame is one `Batch`; its `records` are a tagged union told apart by the first element of
each array. `docs/protocol.md` is the specification. Rules that keep old and new peers talking:
a new field goes to the end and has a default, a field's type never changes, and anything else
is a new `PROTOCOL_VERSION`.

Times are nanoseconds of the sender's CLOCK_MONOTONIC unless a name says `wall`; sizes are bytes;
what was not measured is None, never 0. A field's type says which values it may hold (`ranges`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges as r
from dpwatch.wire.calls import Calls as Calls
from dpwatch.wire.collectives import Collective as Collective
from dpwatch.wire.collectives import Duration as Duration
from dpwatch.wire.collectives import Issuer as Issuer
from dpwatch.wire.collectives import Position as Position
from dpwatch.wire.collectives import Unfinished as Unfinished
from dpwatch.wire.record import Record as Record
from dpwatch.wire.steps import Step as Step
from dpwatch.wire.steps import Steps as Steps

PROTOCOL_VERSION = 3

MAX_RECORDS = 64
"""Records in one frame."""

MAX_DEVICES = 1024
"""Devices of one process."""

MAX_LINES = 1024
"""Lines of output in a record."""

MAX_THREADS = 64
MAX_FRAMES = 64
"""Threads in a record of stacks, and frames of one."""

MAX_ASKED = 4096
"""Ranks that a request names."""

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

    name: r.Word
    kind: r.Word
    capacity_bytes: r.Bytes | None = None
    description: r.Word = ""


class ByCategory(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bytes by memory category (PyTorch MemTracker's words, and `gathered` for unsharded params).

    `buffers` are module buffers and communication buckets, `temp` what lives for an operation or
    two. None: this category was not told apart by the source.
    """

    params: r.Bytes | None = None
    grads: r.Bytes | None = None
    optimizer: r.Bytes | None = None
    activations: r.Bytes | None = None
    buffers: r.Bytes | None = None
    temp: r.Bytes | None = None
    gathered: r.Bytes | None = None


class GroupMembers(msgspec.Struct, array_like=True, frozen=True):
    """A process group as one of its ranks has it.

    Attributes:
        group: c10d's own name for it, which all its ranks have in common.
        members: Its ranks in the world.
    """

    group: r.Word
    members: Annotated[list[r.RankNumber], Meta(max_length=64)]


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
        note: Why no step has been seen, "" once one has or while it is too early to tell.
        groups: The process groups that it is in besides the world, at most 64.
        unseen: What it may exchange that its probe can't see, for people; "" where nothing is known
            of. How much it sends and receives is unknown then.
        worker: Of a multiprocessing child that trains alone, its name: its parent ends it, often by
            SIGTERM, when there is nothing more to do. "" for all others.
        step_fd: Descriptor of the file that holds its step (`last_step`), None where there is none.
    """

    world_size: r.Ranks
    local_rank: r.RankNumber
    strategy: r.Word
    backend: r.Word
    devices: Annotated[list[DeviceInfo], Meta(max_length=MAX_DEVICES)]
    params: r.Count | None = None
    param_bytes: r.Bytes | None = None
    title: r.Line = ""
    total_steps: r.Step | None = None
    cores: r.Count | None = None
    torch_version: r.Word = ""
    capture: r.Word = "none"
    tells_output: bool = False
    note: r.Line = ""
    groups: Annotated[list[GroupMembers], Meta(max_length=64)] = msgspec.field(default_factory=list)
    unseen: r.Line = ""
    worker: r.Word = ""
    step_fd: r.Count | None = None


class Memory(Record, frozen=True, gc=False, tag="memory"):
    """A device's memory over one sampled step.

    Attributes:
        current: Held at the end of the step.
        peak: By `ledger`, held at the step's highest moment; its categories sum to `peak_bytes`.
            By the other sources `peak_bytes` is the highest since the process began, and of its
            categories only what is there throughout is known.
        source: `ledger` (every storage followed), `cuda` (caching allocator), `rss` (resident size
            of the whole process).
        activations_estimate: How much memory in use grew by from forward's start to backward's.
        activations_error: How far that may be off, None where no bound is known.
        heap_bytes: What malloc has handed out to the process, at the step's end.
    """

    device: r.Index
    step: r.Step
    current_bytes: r.Bytes
    peak_bytes: r.Bytes
    current: ByCategory
    peak: ByCategory
    source: r.Word
    activations_estimate: r.Bytes | None = None
    activations_error: r.Bytes | None = None
    heap_bytes: r.Bytes | None = None


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

    step: r.Step
    kind: r.Word
    src: r.Index
    dst: r.Index
    nbytes: r.Payload
    duration_ns: r.Duration


class Meeting(msgspec.Struct, array_like=True, frozen=True):
    """Making a process group, which needs all its ranks to come: what one of them waits in.

    Attributes:
        call: `init_process_group` or `new_group`.
        ranks: How many are expected.
        group: c10d's own name of the group, "" before it has one.
        members: Who, empty where that is every rank or there are over 64.
        launched: Of the world: how many the launcher says it has started (WORLD_SIZE), None where
            it says nothing.
    """

    call: r.Word
    ranks: r.Ranks
    group: r.Word = ""
    members: Annotated[list[r.RankNumber], Meta(max_length=64)] = []
    launched: r.Ranks | None = None


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
        inside: The library's call that the script's line stands in, where that is one of a few that
            may take long: `init_process_group`, `new_group`, `DataLoader`, `torch.save`, ….
        waits_in: What the training thread waits in, as the kernel has it, once it has been still
            for a second: `sleep`, `lock`, `disk`, `file`, `pipe`, `socket`, `poll`, `process`,
            `core` (in nothing: it runs native code); "" where that can't be told.
        waits_on: Which file, process or peer, in words, "" where that can't be told.
        meeting: The process group whose ranks it waits for, while it is being made.
        abandoned: Forward and backward passes of a wrapped model (DDP, FSDP) that have raised and
            after which the script went on: what they would have called was left out.
        abandoned_step: Step of the first of them.
        abandoned_why: Its exception, in one line.
        peak_rss_bytes: The highest resident memory since the process began.
        issuers: What frameworks' own functions have issued since the process began, at most 64
            kinds; of each group its first rank tells.
    """

    step: r.Step
    phase: r.Word
    rss_bytes: r.Bytes | None = None
    gil_held: r.Share | None = None
    where: r.Line = ""
    still_ns: r.Duration | None = None
    positions: Annotated[list[Position], Meta(max_length=64)] = msgspec.field(default_factory=list)
    stack: Annotated[list[r.Line], Meta(max_length=64)] = msgspec.field(default_factory=list)
    inside: r.Word = ""
    waits_in: r.Word = ""
    waits_on: r.Line = ""
    meeting: Meeting | None = None
    abandoned: r.Count = 0
    abandoned_step: r.Step | None = None
    abandoned_why: r.Line = ""
    peak_rss_bytes: r.Bytes | None = None
    issuers: Annotated[list[Issuer], Meta(max_length=64)] = msgspec.field(default_factory=list)


class Gpu(Record, frozen=True, gc=False, tag="gpu"):
    """A GPU as NVML sees it: the whole device, whoever uses it.

    Attributes:
        util: Share of time a kernel ran, 0..1.
        used_bytes: Device memory in use by all processes.
    """

    device: r.Index
    util: r.Share | None = None
    temperature_c: r.Celsius | None = None
    power_w: r.Watts | None = None
    used_bytes: r.Bytes | None = None
    capacity_bytes: r.Bytes | None = None


class Line(msgspec.Struct, array_like=True, frozen=True):
    """A line that a process has printed.

    Attributes:
        wall_ns: The sender's wall clock when the last of it was written.
        text: Without line break, control characters and escape sequences, cut where it is long.
    """

    wall_ns: r.Instant
    text: r.Line


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

    stream: r.Word
    lines: Annotated[list[Line], Meta(max_length=MAX_LINES)]
    left_out: r.Count = 0
    open: Line | None = None


INTERRUPTED = "stopped by Ctrl-C"
"""`Bye.reason` of a rank that a KeyboardInterrupt ended."""


class Bye(Record, frozen=True, gc=False, tag="bye"):
    """A rank's end: its own goodbye, or what its hub saw of the process.

    A hub sends one when the process has ended, also after the rank's own goodbye: `exit` is then
    set, and `state` and `reason` are what the two come to.

    Attributes:
        state: `finished`, `failed` (it raised, or exited with another code than 0) or `lost` (it
            was killed, or the hub found the process gone).
        reason: One line for a person, "" when finished.
        exit: Exit code of the process, or minus the signal that killed it, where the hub could
            tell.
        then: What the process did next: `exit`; `next`, it began another run; `idle`, its training
            function is over or its parent has ended it, and nobody knows whether it raised; ""
            where it goes on. After `next` and `idle` its exit says nothing of this run.
        step: The step it was in, where it ended without a goodbye and its hub could read that.
    """

    state: r.Word
    reason: r.Line = ""
    exit: r.Exit | None = None
    then: r.Word = ""
    step: r.Step | None = None


class Command(Record, frozen=True, gc=False, tag="command"):
    """What `dpwatch run` says of the command that started this run. From hubs only.

    Attributes:
        exit: The command's exit code, or minus the signal that killed it; None while it runs.
        interrupted_ns: When Ctrl-C was pressed, None if it wasn't.
    """

    exit: r.Exit | None = None
    interrupted_ns: r.Instant | None = None


class Silent(msgspec.Struct, array_like=True, frozen=True):
    """A rank whose probe says nothing, as its hub sees the process.

    Attributes:
        pid: Its process.
        process: That process's state as the kernel has it (`T` stopped, `t` traced, `D` in the
            kernel, `R`, `S`), "" where it can't be told.
    """

    rank: r.RankNumber
    pid: r.Pid
    process: r.Word = ""


class Tick(Record, frozen=True, tag="tick"):
    """The hub's clock, once a second: lets a state notice that a rank has fallen silent.

    Attributes:
        silent: Ranks of the hub's own host that have, at most 64.
    """

    silent: Annotated[list[Silent], Meta(max_length=64)] = msgspec.field(default_factory=list)


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

    host: r.Word
    heard_ns: r.Instant
    silent: bool = False
    offset_ns: r.Apart | None = None
    error_ns: r.Instant | None = None
    source: r.Word = ""
    resent: r.Count = 0


class Joined(Record, frozen=True, tag="joined"):
    """How this hub stands to those of other hosts. From hubs only, with each tick.

    Attributes:
        role: `head` (it has all hosts' ranks), `node` (its own; the head has them too) or `alone`
            (its own, and nobody else has them).
        head: The head's address.
        connected: Of a node, whether the head answers.
        note: A line for people where something is missing, "" where all is well.
    """

    role: r.Word
    head: r.Word = ""
    connected: bool = False
    note: r.Line = ""


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

    name: r.Word
    training: bool
    tid: r.Count | None
    frames: Annotated[list[r.Line], Meta(max_length=MAX_FRAMES)]
    theirs: r.Index | None = None


class Stacks(Record, frozen=True, tag="stacks"):
    """A rank's answer to `Asked`: where each of its Python threads is.

    Attributes:
        asked: Number of the request.
        taken_ns: When.
        threads: The training thread first; dpwatch's own is not among them.
        left_out: Threads beyond those.
    """

    asked: r.Seq
    taken_ns: r.Instant
    threads: Annotated[list[ThreadStack], Meta(max_length=MAX_THREADS)]
    left_out: r.Count = 0


class Asked(Record, frozen=True, tag="asked"):
    """Said by the hub: it has asked ranks for their stacks. Also what the file says that asks them.

    Attributes:
        number: Counts the hub's requests from 1.
        ranks: Who is asked; none: every rank.
    """

    number: r.Seq
    ranks: Annotated[list[r.RankNumber], Meta(max_length=MAX_ASKED)] = msgspec.field(
        default_factory=list
    )


class Unanswered(Record, frozen=True, tag="unanswered"):
    """Said by the hub of a rank that should have answered.

    Attributes:
        rank: Who.
        pid: Its process.
        process: That process's state as the kernel has it (`T` stopped, `t` traced, `D` in the
            kernel, `R`, `S`), "" where it can't be told.
    """

    rank: r.RankNumber
    pid: r.Pid
    process: r.Word = ""


class Refused(Record, frozen=True, tag="refused"):
    """Stands where a record was that made no sense, and counts as one that the rank dropped.

    Attributes:
        why: What was wrong with it, in a line.
    """

    why: r.Line = ""


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
    | Command
    | Tick
    | Stacks
    | Asked
    | Unanswered
    | Host
    | Joined
    | Refused
    | Calls
    | Steps
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
        sent: Records in all of the sender's frames before this one, so that it shows what was lost
            on the way; None where nobody counts.
    """

    version: int
    run_id: r.Word
    rank: Annotated[int, Meta(ge=HUB_RANK, lt=r.RANKS)]
    host: r.Word
    pid: r.Pid
    seq: Annotated[int, Meta(ge=-1, le=1 << 53)]
    dropped: r.Count
    mono_ns: r.Instant
    wall_ns: r.Instant
    records: Annotated[list[AnyRecord], Meta(max_length=MAX_RECORDS)]
    sent: r.Count | None = None
