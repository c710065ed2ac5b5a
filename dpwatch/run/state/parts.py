"""The parts of a run's state: ranks, their devices, collectives and copies."""

from __future__ import annotations

import msgspec

from dpwatch.run.state.curves import Envelope, Thinned
from dpwatch.run.state.frame_gaps import ReceivedFrames
from dpwatch.run.state.late_durations import LateDurations
from dpwatch.run.state.series import ByStep, Window
from dpwatch.run.state.stacks import StackDump
from dpwatch.wire.messages import Beat, Bye, Gpu, GroupMembers, Hello, Memory

FADE_CALLS = 512
OPEN_LOSSES = 64


class LaneState(msgspec.Struct):
    """One device of one rank.

    Attributes:
        samples: Batch elements of its last step, 0 if unknown.
        held_bytes: Memory held at the ends of steps.
        held_from: Source of `held_bytes`: `heap` (malloc's), else a source of `Memory`.
        held_samples: Batch elements of the steps in `held_bytes`, 0 if unknown.
        calls: Tallies of the collectives it issued, by `op/group`.
    """

    rank: int
    device: int
    steps: int = 0
    recent: Window = msgspec.field(default_factory=Window)
    step_ms: Envelope = msgspec.field(default_factory=Envelope)
    peak_bytes: Envelope = msgspec.field(default_factory=Envelope)
    held_bytes: Thinned = msgspec.field(default_factory=Thinned)
    held_from: str = ""
    held_samples: Thinned = msgspec.field(default_factory=Thinned)
    samples: int = 0
    memory: Memory | None = None
    highest: Memory | None = None
    gpu: Gpu | None = None
    calls: dict[str, ByStep] = {}
    late: LateDurations = msgspec.field(default_factory=LateDurations)
    late_calls: dict[str, LateDurations] = {}


class BadLoss(msgspec.Struct, array_like=True):
    """A NaN or infinite loss since `step`, and step and value of the last finite one before."""

    step: int
    value: str
    before: tuple[int, float] | None


class Covered(msgspec.Struct, array_like=True):
    """Time covered by intervals, counting overlaps once.

    Intervals arrive nearly in order. Kept are the last contiguous stretch, from `low` to `high`,
    and `before`, the end of the stretch before it.
    """

    before: int = 0
    low: int = 0
    high: int = 0

    def add(self, start: int, end: int) -> int:
        """Adds an interval. Returns how much of it was not covered before."""
        if start > self.high:
            self.before, self.low, self.high = self.high, start, end
            return end - start
        start = max(start, self.before)
        found = max(0, min(end, self.low) - start) + max(0, end - self.high)
        self.low, self.high = min(self.low, start), max(self.high, end)
        return found


class RankState(msgspec.Struct):
    """One rank, that is one process: its identity, its liveness and its devices.

    Attributes:
        received: Numbers of its frames that have arrived.
        refused: Its records that were invalid or exceeded a limit.
        missed: Its records that did not arrive here: lost, or sent to an earlier hub.
        taken: Its records that arrived.
        cells: Number of its collectives per device, and of its message peers.
        groups: Its process groups as last reported; at the end most are destroyed.
        process: Kernel state of its process while it is silent, else "".
        good_loss: Step and value of its last finite loss.
        whole_steps: Number of steps whose calls have all arrived.
        peers: Tallies of its messages, by `send/rank` and `recv/rank`.
        waits: When it waited for other ranks in collectives.
        generations: By group name, the last generation it called in, counted from 0 over the run.
        left: The same for earlier processes with this rank; None for the run's first process.
        shifts: By group name, what to add to its own generations.
        bye: How it ended, None while it runs: `own` and `seen` combined (`exits.combine_ends`).
        ended_ns: When it said goodbye, or was found to have ended without one.
        own: Its own goodbye.
        seen: The end of its process as its hub observed it.
        exited_ns: When its process ended, 0 while it runs or if the end was not observed.
    """

    rank: int
    host: str
    pid: int
    hello: Hello | None = None
    bye: Bye | None = None
    beat: Beat | None = None
    dropped: int = 0
    seen_ns: int = 0
    progress_ns: int = 0
    ended_ns: int = 0
    good_loss: tuple[int, float] | None = None
    bad_loss: BadLoss | None = None
    lanes: dict[int, LaneState] = {}
    received: ReceivedFrames = msgspec.field(default_factory=ReceivedFrames)
    dump: StackDump = msgspec.field(default_factory=StackDump)
    refused: int = 0
    missed: int = 0
    taken: int = 0
    cells: int = 0
    process: str = ""
    groups: list[GroupMembers] = []
    whole_steps: int = 0
    peers: dict[str, ByStep] = {}
    waits: Covered = msgspec.field(default_factory=Covered)
    generations: dict[str, int] = {}
    left: dict[str, int] | None = None
    shifts: dict[str, int] = {}
    own: Bye | None = None
    seen: Bye | None = None
    exited_ns: int = 0

    @property
    def worker(self) -> str:
        """See `Hello.worker`."""
        return self.hello.worker if self.hello else ""

    @property
    def steps_done(self) -> int:
        """Number of steps completed by its furthest device."""
        return max([0, *(lane.steps for lane in self.lanes.values())])


class OpState(msgspec.Struct):
    """All calls of one op in one group."""

    op: str
    group: str
    ranks: int
    latency_ms: list[float] = []
    last_calls: dict[int, int] = {}
    last_wait_ns: dict[int, int] = {}
    timed_late: bool = False
    booked: int = 0

    def book_last(self, latest: int, others_ns: int) -> None:
        """Counts a last arrival and the others' mean wait; old counts fade by halving."""
        self.last_calls[latest] = self.last_calls.get(latest, 0) + 1
        self.last_wait_ns[latest] = self.last_wait_ns.get(latest, 0) + others_ns
        self.booked += 1
        if self.booked >= FADE_CALLS:
            for r, calls in list(self.last_calls.items()):
                if calls < 2:
                    del self.last_calls[r], self.last_wait_ns[r]
                else:
                    self.last_wait_ns[r] = self.last_wait_ns[r] * (calls // 2) // calls
                    self.last_calls[r] = calls // 2
            self.booked = sum(self.last_calls.values())


class Route(msgspec.Struct):
    """Copies of one kind from one device to another, in one process."""

    rank: int
    kind: str
    src: int
    dst: int
    by_step: ByStep = msgspec.field(default_factory=ByStep)


class OpenLoss(msgspec.Struct, array_like=True):
    """The loss of a step that not all ranks have reported yet."""

    total: float = 0.0
    count: int = 0
