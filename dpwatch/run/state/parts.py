"""What a run's state is made of: ranks, their devices, and kinds of collectives and copies."""

from __future__ import annotations

import msgspec

from dpwatch.run.state.curves import Envelope, Thinned
from dpwatch.run.state.frame_gaps import Received
from dpwatch.run.state.late_durations import Late
from dpwatch.run.state.series import ByStep, Window
from dpwatch.run.state.stacks import Dump
from dpwatch.wire.messages import Beat, Bye, Gpu, GroupMembers, Hello, Memory

FADE_CALLS = 512
OPEN_LOSSES = 64


class LaneState(msgspec.Struct):
    """One device of one rank.

    Attributes:
        samples: Batch elements of its last step, 0 where that is not known.
        held_bytes: Held at steps' ends …
        held_from: … by what account: `heap` (malloc's), else a source of `Memory`, …
        held_samples: … and the batch elements of those steps, 0 where that is not known.
        calls: The collectives it issued, by `op/group`.
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
    late: Late = msgspec.field(default_factory=Late)
    late_calls: dict[str, Late] = {}


class BadLoss(msgspec.Struct, array_like=True):
    """A NaN or infinite loss: since which step, which (`nan`, `inf`), the last good one's too."""

    step: int
    value: str
    before: tuple[int, float] | None


class Covered(msgspec.Struct, array_like=True):
    """Time that intervals have covered so far, so that what overlaps counts once.

    Intervals come nearly in order. Known is the last stretch without a gap, from `low` to `high`,
    and `before`: where the one before it ends.
    """

    before: int = 0
    low: int = 0
    high: int = 0

    def add(self, start: int, end: int) -> int:
        """Returns: how much of the interval nothing has covered before."""
        if start > self.high:
            self.before, self.low, self.high = self.high, start, end
            return end - start
        start = max(start, self.before)
        found = max(0, min(end, self.low) - start) + max(0, end - self.high)
        self.low, self.high = min(self.low, start), max(self.high, end)
        return found


class RankState(msgspec.Struct):
    """One process: who it is, when it last spoke, its devices.

    Attributes:
        received: Which of its frames have come, by their numbers.
        refused: Its records that made no sense, or that there was no room for.
        missed: Its records that did not get here: lost on the way, or sent to a hub before this.
        taken: Those that did.
        cells: Kinds of collectives it has called, by device.
        groups: Its process groups as it told of them last; in the end most are destroyed.
        process: The state that the kernel has its process in, while it is silent; else "".
        good_loss: The last loss that was a number, and its step.
        whole_steps: Steps of which all calls have come.
        peers: What it sends to other ranks and receives from them, by `send/rank` and `recv/rank`.
        waits: When it has waited for other ranks to come to a call.
        generations: By group, the last of that name it has called in, counted from 0 over the run.
        left: The same of the processes that had this rank before; None of a run's first process.
        shifts: By group, what its own count of generations has to be increased by.
        bye: How it ended, None while it goes on: what `own` and `seen` come to (`hub.exits`).
        ended_ns: When it said goodbye, or was found to have ended without.
        own: Its own goodbye.
        seen: What its hub saw of its process's end.
        exited_ns: When that was, 0 while the process runs or where its end was not seen.
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
    received: Received = msgspec.field(default_factory=Received)
    dump: Dump = msgspec.field(default_factory=Dump)
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
        """Steps that its furthest device has done."""
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
        """Books who came last to a call and the others' mean wait; old calls fade by halving."""
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
    """A step's loss while ranks are still to report it."""

    total: float = 0.0
    count: int = 0
