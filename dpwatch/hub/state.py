"""A run's state. It moves in one place, `RunState.apply`, and so can be replayed from its frames.

All of it is data (msgspec Structs), bounded whatever the run's length, and travels whole to a
viewer that comes late. What people see is computed from it in `summarize`.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable
from typing import cast

import msgspec

from dpwatch.hub.arrivals import Arrivals
from dpwatch.hub.durations import Late, book, keep_latency
from dpwatch.hub.output import RunOutput
from dpwatch.hub.received import Received
from dpwatch.hub.series import WINDOW, ByStep, Thinned, keep_last
from dpwatch.hub.snapshot import Alert, Diagnosis
from dpwatch.hub.stacks import Dump, hear
from dpwatch.plan.traffic import wire_bytes
from dpwatch.wire.messages import (
    HUB_RANK,
    Asked,
    Batch,
    Beat,
    Bye,
    Collective,
    Duration,
    Gpu,
    Hello,
    Host,
    Joined,
    Memory,
    Output,
    Stacks,
    Step,
    Transfer,
    Unanswered,
)

FADE_CALLS = 512
OPEN_LOSSES = 64

_PEER_GONE = re.compile(
    r"connection|peer|broken pipe|socket|timed? ?out|gloo|nccl|DistBackend", re.I
)
"""What ranks say whose collective failed since another rank was gone."""


class LaneState(msgspec.Struct):
    """One device of one rank; `collectives` are all that it issued, whatever op and group."""

    rank: int
    device: int
    steps: int = 0
    recent: list[Step] = []
    step_ms: Thinned = msgspec.field(default_factory=Thinned)
    peak_bytes: Thinned = msgspec.field(default_factory=Thinned)
    held_bytes: Thinned = msgspec.field(default_factory=Thinned)
    memory: Memory | None = None
    highest: Memory | None = None
    gpu: Gpu | None = None
    collectives: ByStep = msgspec.field(default_factory=ByStep)
    late: Late = msgspec.field(default_factory=Late)


class BadLoss(msgspec.Struct, array_like=True):
    """A loss that is no number: since which step, which (`nan`, `inf`), and the last good one."""

    step: int
    value: str
    before: float | None


class RankState(msgspec.Struct):
    """One process: who it is, when it last spoke, its devices.

    Attributes:
        received: Which of its frames have come, by their numbers.
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
    good_loss: float | None = None
    bad_loss: BadLoss | None = None
    lanes: dict[int, LaneState] = {}
    received: Received = msgspec.field(default_factory=Received)
    dump: Dump = msgspec.field(default_factory=Dump)


class OpState(msgspec.Struct):
    """All calls of one op in one group."""

    op: str
    group: str
    ranks: int
    by_rank: dict[int, ByStep] = {}
    latency_ms: list[float] = []
    last_calls: dict[int, int] = {}
    last_wait_ns: dict[int, int] = {}
    late: dict[int, Late] = {}

    def book_last(self, waits_ns: dict[int, int]) -> None:
        """Books who came last to a call, given each rank's wait; old calls fade out by halving."""
        latest = min(waits_ns, key=lambda r: waits_ns[r])
        others_ns = sum(waits_ns.values()) // max(1, len(waits_ns) - 1)
        self.last_calls[latest] = self.last_calls.get(latest, 0) + 1
        self.last_wait_ns[latest] = self.last_wait_ns.get(latest, 0) + others_ns
        if sum(self.last_calls.values()) >= FADE_CALLS:
            for r, calls in list(self.last_calls.items()):
                if calls < 2:
                    del self.last_calls[r], self.last_wait_ns[r]
                else:
                    self.last_wait_ns[r] = self.last_wait_ns[r] * (calls // 2) // calls
                    self.last_calls[r] = calls // 2


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


class RunState(msgspec.Struct):
    """Everything the hub knows of a run.

    Attributes:
        now_ns: The latest monotonic time any sender has told; the hub ticks once a second.
        frames: Frames applied so far; numbers the hub's outgoing stream.
        wall_s: The wall clock at that moment, as that sender has it.
        diagnoses: Findings that hold now, with the step they began at (see `diagnose`).
        silent_ns: By kind, when the rule of a finding that holds first had nothing to say.
        alerts: What has held so far, the oldest first.
        hosts: The run's other hosts, as far as their hubs have joined this one.
        joined: How this hub stands to those; None on one host.
        output: The last lines that ranks have printed.
    """

    run_id: str
    now_ns: int = 0
    wall_s: float = 0.0
    frames: int = 0
    start_ns: int | None = None
    end_ns: int | None = None
    ranks: dict[int, RankState] = {}
    ops: dict[str, OpState] = {}
    arrivals: Arrivals = msgspec.field(default_factory=Arrivals)
    routes: dict[str, Route] = {}
    loss: Thinned = msgspec.field(default_factory=Thinned)
    step_ms: Thinned = msgspec.field(default_factory=Thinned)
    first_loss: tuple[int, float] | None = None
    last_loss: tuple[int, float] | None = None
    losses: dict[int, OpenLoss] = {}
    diagnoses: list[Diagnosis] = []
    silent_ns: dict[str, int] = {}
    alerts: list[Alert] = []
    hosts: dict[str, Host] = {}
    joined: Joined | None = None
    output: RunOutput = msgspec.field(default_factory=RunOutput)

    def apply(self, batch: Batch) -> None:
        """Takes in one frame."""
        self.frames += 1
        if batch.mono_ns >= self.now_ns:
            self.now_ns, self.wall_s = batch.mono_ns, batch.wall_ns / 1e9
        if batch.rank == HUB_RANK:
            self._hub(batch)
            return
        rank = self._rank(batch)
        for record in batch.records:
            match record:
                case Step():
                    self._step(rank, record)
                case Collective():
                    self._collective(rank, record)
                case Duration():
                    self._duration(rank, record)
                case Transfer():
                    self._transfer(rank, record)
                case Memory():
                    _memory(_lane(rank, record.device), record)
                case Beat():
                    self._beat(rank, record)
                case Gpu():
                    _lane(rank, record.device).gpu = record
                case Output():
                    self.output.take(rank.rank, record, rank.hello.world_size if rank.hello else 1)
                case Hello():
                    rank.hello = record
                case Stacks():
                    rank.dump.take(record, max(self.world_size, len(self.ranks)))
                case Bye():
                    rank.bye = record
                    rank.ended_ns = batch.mono_ns
                    self.end_ns = batch.mono_ns

    def _hub(self, batch: Batch) -> None:
        for record in batch.records:
            match record:
                case Host():
                    self.hosts[record.host] = record
                case Joined():
                    self.joined = record
                case Asked() | Unanswered():
                    hear(self, record, batch.mono_ns)

    def _rank(self, batch: Batch) -> RankState:
        rank = self.ranks.get(batch.rank)
        if rank is None or rank.pid != batch.pid:
            # A restarted rank begins anew: its steps, and its sequence numbers, do too.
            if rank is not None:
                self.forget(batch.rank)
            rank = RankState(batch.rank, batch.host, batch.pid)
            self.ranks[batch.rank] = rank
            self.ranks = dict(sorted(self.ranks.items()))
        if rank.bye is not None and rank.bye.state == "lost" and batch.seq >= 0:
            rank.bye = None  # It was only silent: here it speaks again.
        if batch.seq >= 0:
            rank.received.add(batch.seq)
        rank.seen_ns = batch.mono_ns
        rank.dropped = max(rank.dropped, batch.dropped)
        return rank

    def forget(self, rank: int) -> None:
        """Another process has this rank now: its steps and calls count from 0 again."""
        self.arrivals.forget(rank)
        self.ranks.pop(rank, None)
        for op in self.ops.values():
            op.by_rank.pop(rank, None)
        for key in [key for key, route in self.routes.items() if route.rank == rank]:
            del self.routes[key]

    def _step(self, rank: RankState, record: Step) -> None:
        lane = _lane(rank, record.device)
        lane.steps = max(lane.steps, record.step + 1)
        lane.recent.append(record)
        keep_last(cast("list[object]", lane.recent), WINDOW)
        took_ms = (record.end_ns - record.start_ns) / 1e6
        lane.step_ms.push(record.step, took_ms)
        rank.progress_ns = record.end_ns
        if self.start_ns is None or record.start_ns < self.start_ns:
            self.start_ns = record.start_ns
        if record.device == 0:
            if record.loss is not None:
                _judge_loss(rank, record.step, record.loss)
                self.add_loss(record.step, record.loss)
            if rank.rank == min(self.ranks):
                self.step_ms.push(record.step, took_ms)

    def _beat(self, rank: RankState, record: Beat) -> None:
        """A beat counts the steps done; of short ones not every one has a record."""
        rank.beat = record
        if 0 in rank.lanes:
            lane = rank.lanes[0]
            lane.steps = max(lane.steps, record.step)

    def add_loss(self, step: int, loss: float, count: int = 1) -> None:
        """Means a step's loss over the ranks, once all have told theirs.

        Ranks of short steps need not read their loss in the same ones; a mean over some ranks
        would be another number, so what stays incomplete is let go. `loss` is the sum of `count`.
        """
        entry = self.losses.setdefault(step, OpenLoss())
        entry.total += loss
        entry.count += count
        if entry.count >= self.world_size:
            self._close_loss(step)
        elif len(self.losses) > OPEN_LOSSES:
            del self.losses[min(self.losses)]

    def _close_loss(self, step: int) -> None:
        entry = self.losses.pop(step)
        mean = entry.total / entry.count
        if self.first_loss is None or step < self.first_loss[0]:
            self.first_loss = (step, mean)
        if self.last_loss is None or step >= self.last_loss[0]:
            self.last_loss = (step, mean)
            self.loss.push(step, mean)

    def _collective(self, rank: RankState, record: Collective) -> None:
        if record.ranks < 1 or record.nbytes < 0:
            return
        key = f"{record.op}/{record.group}"
        op = self.ops.get(key)
        if op is None:
            op = self.ops[key] = OpState(record.op, record.group, record.ranks)
        of_op = op.by_rank.setdefault(rank.rank, ByStep()).at(record.step)
        of_device = _lane(rank, record.device).collectives.at(record.step)
        of_device.wire_bytes += wire_bytes(record.op, record.nbytes, record.ranks)
        for tally in (of_op, of_device):
            tally.calls += 1
            tally.nbytes += record.nbytes
            if record.blocked_ns is not None:
                tally.waited_calls += 1
                tally.waited_ns += record.blocked_ns
        if record.completed_ns is not None:
            took_ns = record.completed_ns - record.issued_ns
            for tally in (of_op, of_device):
                tally.timed_calls += 1
                tally.timed_ns += took_ns
            keep_latency(op.latency_ms, took_ns)
        self.arrive(rank.rank, record, op)

    def _duration(self, rank: RankState, record: Duration) -> None:
        op = self.ops.get(f"{record.op}/{record.group}")
        if op is None or rank.rank not in op.by_rank or record.duration_ns < 0:
            return
        late = op.late.setdefault(rank.rank, Late())
        if book(record, op.by_rank[rank.rank], late):
            lane = _lane(rank, record.device)
            book(record, lane.collectives, lane.late)
            keep_latency(op.latency_ms, record.duration_ns)

    def arrive(self, rank: int, record: Collective, op: OpState) -> None:
        """Books who came last once all have: `wait(r) = last arrival - arrival(r)`."""
        entered = self.arrivals.enter(rank, record)
        if entered is None or len(entered) < 2:
            return
        error_ns = self.clock_error_ns({self.ranks[r].host for r in entered if r in self.ranks})
        if error_ns is None:
            return
        last_ns = max(call.issued_ns for call in entered.values())
        waits_ns = {r: last_ns - call.issued_ns for r, call in entered.items()}
        for r, wait_ns in waits_ns.items():
            if r in op.by_rank:  # another op where ranks are out of step
                op.by_rank[r].at(entered[r].step).wait_ns += wait_ns
        # In the first step ranks come as their start-up lets them.
        if min(call.step for call in entered.values()) > 0:
            op.book_last(waits_ns)
            self.arrivals.book_late(entered)

    def _transfer(self, rank: RankState, record: Transfer) -> None:
        key = f"{rank.rank}/{record.kind}/{record.src}/{record.dst}"
        route = self.routes.get(key)
        if route is None:
            route = Route(rank.rank, record.kind, record.src, record.dst)
            self.routes[key] = route
        tally = route.by_step.at(record.step)
        tally.calls += 1
        tally.nbytes += record.nbytes
        tally.timed_calls += 1
        tally.timed_ns += record.duration_ns

    def clock_error_ns(self, hosts: Iterable[str]) -> int | None:
        """How far off times of ranks on two of these hosts may be from each other.

        0 on one host. None where their clocks don't compare: one of them has not been heard of by
        the head, whose own host is the one that `hosts` has no entry of.
        """
        names = set(hosts)
        if len(names) < 2:
            return 0
        others = [self.hosts[name].error_ns for name in names if name in self.hosts]
        if len(others) < len(names) - 1 or None in others:
            return None
        return sum(sorted(error for error in others if error is not None)[-2:])

    @property
    def gone(self) -> list[RankState]:
        """Ranks that have died, the one first that the others followed."""
        dead = [r for r in self.ranks.values() if r.bye and r.bye.state in ("lost", "failed")]
        return sorted(dead, key=lambda rank: (_consequence(rank), rank.ended_ns))

    @property
    def world_size(self) -> int:
        """Processes in the run, as its ranks say."""
        told = [rank.hello.world_size for rank in self.ranks.values() if rank.hello]
        return max([1, *told])


def _consequence(rank: RankState) -> int:
    """How likely it is that a rank died because another one had: 0 not, 3 surely."""
    if rank.bye is None or rank.bye.exit == -signal.SIGTERM:
        return 3  # launchers end the rest like that
    if rank.bye.state == "failed":
        return 2 if _PEER_GONE.search(rank.bye.reason) else 0
    return int(rank.bye.exit == -signal.SIGABRT)  # as gloo's own threads do when a peer is gone


def _lane(rank: RankState, device: int) -> LaneState:
    lane = rank.lanes.get(device)
    if lane is None:
        lane = rank.lanes[device] = LaneState(rank.rank, device)
        rank.lanes = dict(sorted(rank.lanes.items()))
    return lane


def _judge_loss(rank: RankState, step: int, loss: float) -> None:
    if math.isfinite(loss):
        rank.good_loss, rank.bad_loss = loss, None
    elif rank.bad_loss is None:
        rank.bad_loss = BadLoss(step, str(loss), rank.good_loss)


def _memory(lane: LaneState, record: Memory) -> None:
    lane.memory = record
    lane.peak_bytes.push(record.step, record.peak_bytes)
    lane.held_bytes.push(record.step, record.current_bytes)
    if lane.highest is None or record.peak_bytes >= lane.highest.peak_bytes:
        lane.highest = record
