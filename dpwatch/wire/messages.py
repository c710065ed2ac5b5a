"""The records a rank streams: one Struct per record type, encoded as msgpack arrays.

A frame is one `Batch`. Its `records` are a tagged union; the first element of each array is the
tag. `docs/protocol.md` is the specification. To stay compatible with older peers, a new field goes
at the end and has a default, and a field's type never changes. Anything else needs a new
`PROTOCOL_VERSION`.

Times are nanoseconds on the sender's CLOCK_MONOTONIC unless the name says `wall`; sizes are bytes.
A value that was not measured is None, never 0. A field's type states its range (`ranges`).
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
"""Lines of output in one record."""

MAX_THREADS = 64
MAX_FRAMES = 64
"""Threads in one `Stacks` record, and frames per thread."""

MAX_ASKED = 4096
"""Ranks that one request may name."""

CATEGORIES = ("params", "grads", "optimizer", "activations", "buffers", "temp", "gathered")
"""Memory categories, in the field order of `ByCategory` and the drawing order on screen."""

PHASES = ("data", "h2d", "forward", "backward", "optimizer")
"""Measured phases of a step; the remainder is `other`."""


class DeviceInfo(msgspec.Struct, array_like=True, frozen=True):
    """One device a rank drives.

    Attributes:
        name: As shown: `vgpu:0`, `cuda:1`, `cpu`.
        kind: `virtual` (memory is host memory, compute runs on CPU cores), `cuda`, `cpu`, or
            `host`: host memory that takes part in training but is not one of the devices.
        capacity_bytes: Size of its memory, None if it has no limit of its own.
        description: Hardware name, such as `NVIDIA A100-SXM4-80GB`.
    """

    name: r.Word
    kind: r.Word
    capacity_bytes: r.Bytes | None = None
    description: r.Word = ""


class ByCategory(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bytes by memory category: PyTorch MemTracker's, plus `gathered` for unsharded parameters.

    `buffers` are module buffers and communication buckets; `temp` is memory that lives for one or
    two operations. None means that the source does not separate this category.
    """

    params: r.Bytes | None = None
    grads: r.Bytes | None = None
    optimizer: r.Bytes | None = None
    activations: r.Bytes | None = None
    buffers: r.Bytes | None = None
    temp: r.Bytes | None = None
    gathered: r.Bytes | None = None


class GroupMembers(msgspec.Struct, array_like=True, frozen=True):
    """A process group, as one of its ranks sees it.

    Attributes:
        group: c10d's name for it, the same on all its ranks.
        members: Global ranks of its members.
    """

    group: r.Word
    members: Annotated[list[r.RankNumber], Meta(max_length=64)]


class Hello(Record, frozen=True, tag="hello"):
    """Identifies a rank. Sent first, on change, and every two seconds in case the hub starts late.

    Attributes:
        world_size: Number of processes in the run (1 for `dp`, whose one process drives several
            devices).
        local_rank: Rank within the host.
        strategy: `single`, `dp`, `ddp`, …, or "" if it was not given and cannot be detected.
        backend: `virtual`, `gloo`, `nccl`, …, or "" without communication.
        devices: The devices this rank drives; records refer to them by index.
        params: Number of elements in all parameters of this rank's model, None before the first
            forward.
        param_bytes: Size of those parameters.
        title: Human-readable name of the run, usually the script's name.
        total_steps: Steps the run intends to do, if known.
        cores: CPU cores this process may use.
        torch_version: `torch.__version__`.
        capture: How collectives are captured: `observer` (all), `patch` (Python callers only),
            `none`.
        tells_output: Whether the process's output is streamed too (`Output`).
        note: Why no step has been seen, "" once one has or while it is too early to tell.
        groups: The process groups it belongs to besides the world, at most 64.
        unseen: Communication the probe cannot observe, as text for a person; "" if none is known.
            The bytes sent and received are then unknown.
        worker: Name of a multiprocessing child that trains alone. Its parent ends it, often by
            SIGTERM, when there is no more work. "" for all others.
        step_fd: Descriptor of the file that holds its current step (`last_step`), None without one.
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
        current: Bytes held at the end of the step.
        peak: With source `ledger`, the bytes held at the step's peak; the categories sum to
            `peak_bytes`. With other sources, `peak_bytes` is the highest since the process started,
            and only categories that live through the whole step are known.
        source: `ledger` (every storage tracked), `cuda` (caching allocator), `rss` (resident size
            of the whole process).
        activations_estimate: Growth of memory in use from the start of forward to the start of
            backward.
        activations_error: Bound on the error of that estimate, None if unknown.
        heap_bytes: Bytes that malloc has handed out to the process, at the end of the step.
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
            (parameter servers), `activation`, `activation_grad` (a model split over two devices).
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
    """A process group being created, which blocks until all its ranks arrive.

    Attributes:
        call: `init_process_group` or `new_group`.
        ranks: Number of ranks expected.
        group: c10d's name of the group, "" before it has one.
        members: The ranks, empty if that is every rank or there are more than 64.
        launched: For the world, the number of processes the launcher reports (WORLD_SIZE), None if
            it does not.
    """

    call: r.Word
    ranks: r.Ranks
    group: r.Word = ""
    members: Annotated[list[r.RankNumber], Meta(max_length=64)] = []
    launched: r.Ranks | None = None


class Beat(Record, frozen=True, tag="beat"):
    """A heartbeat from the probe's own thread, so it keeps coming while the rank is stuck.

    Attributes:
        step: Step in progress.
        phase: Phase the training thread is in, "" between phases.
        rss_bytes: Resident memory of the process.
        gil_held: Share of time some thread held the GIL, if a sampler is installed.
        where: `file:line function` of the script's frame the training thread is in.
        still_ns: Time without progress: no new step, phase, collective or line of Python, and the
            thread was not running on a core (ignored if it may be waiting for an accelerator).
        positions: Progress in each of its process groups, latest first, at most 16.
        stack: Python frames of the training thread, outermost first, at most 16; only after two
            seconds without progress.
        inside: The library call in progress, if it is one of a few that may take long:
            `init_process_group`, `new_group`, `DataLoader`, `torch.save`, ….
        waits_in: What the training thread waits in according to the kernel, after one second
            without progress: `sleep`, `lock`, `disk`, `file`, `pipe`, `socket`, `poll`, `process`,
            `core` (it is not waiting but running native code); "" if unknown.
        waits_on: Which file, process or peer, as text; "" if unknown.
        meeting: The process group being created, while it waits for that group's ranks.
        abandoned: Number of forward and backward passes of a wrapped model (DDP, FSDP) that raised
            and after which the script went on, skipping the pass's remaining collectives.
        abandoned_step: Step of the first of them.
        abandoned_why: Its exception, in one line.
        peak_rss_bytes: Highest resident memory since the process started.
        issuers: Collectives that frameworks' own functions have issued since the process started,
            at most 64 kinds; only the first rank of each group reports them.
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
    """A line that a process printed.

    Attributes:
        wall_ns: Wall clock of the sender when the end of the line was written.
        text: Without line break, control characters and escape sequences; truncated if long.
    """

    wall_ns: r.Instant
    text: r.Line


class Output(Record, frozen=True, tag="output"):
    """What a process printed to one of its streams since the previous record.

    Attributes:
        stream: `out` (standard output) or `err` (standard error).
        lines: Complete lines, oldest first. A line overwritten after a carriage return, as by
            progress bars, appears only in its final state.
        left_out: Lines before these that were dropped because too many came at once.
        open: The line still being written; it replaces the previous `open`. None if there is none.
    """

    stream: r.Word
    lines: Annotated[list[Line], Meta(max_length=MAX_LINES)]
    left_out: r.Count = 0
    open: Line | None = None


INTERRUPTED = "stopped by Ctrl-C"
"""`Bye.reason` of a rank that ended with KeyboardInterrupt."""


class Bye(Record, frozen=True, gc=False, tag="bye"):
    """The end of a rank: its own goodbye, or what the hub observed of the process.

    When the process has ended, the hub sends a `Bye` too, even after the rank's own. That one has
    `exit` set, and its `state` and `reason` combine both.

    Attributes:
        state: `finished`, `failed` (it raised, or exited with a non-zero code) or `lost` (it was
            killed, or the hub found the process gone).
        reason: One line for a person, "" when finished.
        exit: Exit code of the process, or minus the signal that killed it, if the hub could tell.
        then: What the process did next: `exit`; `next`, it started another run; `idle`, its
            training function has returned or its parent has ended it, and whether it raised is
            unknown; "" if it goes on. After `next` and `idle` the exit code says nothing about this
            run.
        step: The step it was in, if it ended without a goodbye and the hub could read that.
    """

    state: r.Word
    reason: r.Line = ""
    exit: r.Exit | None = None
    then: r.Word = ""
    step: r.Step | None = None


class Command(Record, frozen=True, gc=False, tag="command"):
    """State of the command that `dpwatch run` started. Sent by hubs only.

    Attributes:
        exit: The command's exit code, or minus the signal that killed it; None while it runs.
        interrupted_ns: When Ctrl-C was pressed, None if it was not.
    """

    exit: r.Exit | None = None
    interrupted_ns: r.Instant | None = None


class Silent(msgspec.Struct, array_like=True, frozen=True):
    """A rank whose probe is silent, as its hub sees the process.

    Attributes:
        pid: Its process id.
        process: State of the process according to the kernel (`T` stopped, `t` traced, `D`
            uninterruptible sleep, `R`, `S`), "" if unknown.
    """

    rank: r.RankNumber
    pid: r.Pid
    process: r.Word = ""


class Tick(Record, frozen=True, tag="tick"):
    """The hub's clock, once a second, which lets a state notice that a rank has gone silent.

    Attributes:
        silent: Silent ranks on the hub's own host, at most 64.
    """

    silent: Annotated[list[Silent], Meta(max_length=64)] = msgspec.field(default_factory=list)


class Host(Record, frozen=True, tag="host"):
    """Another host of the run, as the head hub sees it. Sent by hubs only, with each tick.

    Attributes:
        host: Its name.
        heard_ns: When its hub last reported, on the head's clock.
        silent: Whether that is too long ago, so that the data on its ranks is stale.
        offset_ns: Offset added to its clock to get the head's; already applied to its ranks' times.
        error_ns: Bound on the error of that offset.
        source: What the offset was estimated from: `collectives`, or an `exchange` of messages.
        resent: How often its whole state had to be fetched again after lost frames or a lost
            connection.
    """

    host: r.Word
    heard_ns: r.Instant
    silent: bool = False
    offset_ns: r.Apart | None = None
    error_ns: r.Instant | None = None
    source: r.Word = ""
    resent: r.Count = 0


class Joined(Record, frozen=True, tag="joined"):
    """How this hub relates to those of other hosts. Sent by hubs only, with each tick.

    Attributes:
        role: `head` (it has the ranks of all hosts), `node` (it has its own, and so does the head)
            or `alone` (it has its own, and nobody else does).
        head: Address of the head.
        connected: For a node, whether the head answers.
        note: One line for a person if something is missing, "" otherwise.
    """

    role: r.Word
    head: r.Word = ""
    connected: bool = False
    note: r.Line = ""


class ThreadStack(msgspec.Struct, array_like=True, frozen=True):
    """The stack of one Python thread.

    Attributes:
        name: Its `threading` name, "" for a thread that Python did not start.
        training: Whether it is the training thread.
        tid: Its kernel thread id (as in `top -H` and gdb), None if Python has none.
        frames: `file:line function`, outermost first; if there are too many, the middle is omitted
            and replaced by a line that starts with `…`.
        theirs: Index of the innermost frame of the user's own code, None if there is none.
    """

    name: r.Word
    training: bool
    tid: r.Count | None
    frames: Annotated[list[r.Line], Meta(max_length=MAX_FRAMES)]
    theirs: r.Index | None = None


class Stacks(Record, frozen=True, tag="stacks"):
    """A rank's answer to `Asked`: the stacks of its Python threads.

    Attributes:
        asked: Number of the request.
        taken_ns: When the stacks were taken.
        threads: The training thread first; dpwatch's own thread is excluded.
        left_out: Number of threads beyond those.
    """

    asked: r.Seq
    taken_ns: r.Instant
    threads: Annotated[list[ThreadStack], Meta(max_length=MAX_THREADS)]
    left_out: r.Count = 0


class Asked(Record, frozen=True, tag="asked"):
    """A request for stacks: announced by the hub, and the contents of the file that ranks poll.

    Attributes:
        number: Sequence number of the hub's requests, from 1.
        ranks: The ranks asked; empty means every rank.
    """

    number: r.Seq
    ranks: Annotated[list[r.RankNumber], Meta(max_length=MAX_ASKED)] = msgspec.field(
        default_factory=list
    )


class Unanswered(Record, frozen=True, tag="unanswered"):
    """Sent by the hub about a rank that did not answer a request in time.

    Attributes:
        rank: Its rank.
        pid: Its process id.
        process: State of the process according to the kernel (`T` stopped, `t` traced, `D`
            uninterruptible sleep, `R`, `S`), "" if unknown.
    """

    rank: r.RankNumber
    pid: r.Pid
    process: r.Word = ""


class Refused(Record, frozen=True, tag="refused"):
    """Replaces a record that was invalid; counts as one that the rank dropped.

    Attributes:
        why: What was wrong with it, in one line.
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
"""`Batch.rank` of the records that the hub itself adds."""


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One frame: records of one rank, in the order they happened.

    Attributes:
        version: `PROTOCOL_VERSION` of the sender; a hub rejects others.
        rank: The sender's rank, `HUB_RANK` for the hub.
        seq: Sequence number of the sender's batches, from 0.
        dropped: Records the sender has dropped so far, since it never blocks.
        mono_ns: CLOCK_MONOTONIC of the sender when it made the frame.
        wall_ns: Its wall clock at that moment, which maps the `*_ns` times to wall time.
        sent: Records in all earlier frames of this sender, which reveals losses in transit; None if
            not counted.
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
