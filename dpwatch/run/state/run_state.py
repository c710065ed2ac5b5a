"""A run's state. It moves in one place, `RunState.apply`, and so can be replayed from its frames.

All of it is data (msgspec Structs), bounded whatever the run's length, and travels whole to a
viewer that comes late. What people see is computed from it in `summarize`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from dpwatch.run.model.snapshot import Alert, Diagnosis, Run
from dpwatch.run.state import booking, bounds, generations
from dpwatch.run.state.arrivals import Arrivals
from dpwatch.run.state.curves import Envelope, Thinned
from dpwatch.run.state.endings import BY_ITSELF, ends
from dpwatch.run.state.exits import joined, was_stopped
from dpwatch.run.state.output import RunOutput
from dpwatch.run.state.parts import (
    OPEN_LOSSES,
    BadLoss,
    LaneState,
    OpenLoss,
    OpState,
    RankState,
    Route,
)
from dpwatch.run.state.pending import MANY, Pending, settle, settler_of_many
from dpwatch.run.state.series import CALLS, NBYTES, SAMPLES, TIMED_CALLS, TIMED_NS, packed, unpacked
from dpwatch.run.state.stacks import hear
from dpwatch.run.state.step_offsets import StepOffsets
from dpwatch.wire.gather import counted, one_by_one
from dpwatch.wire.messages import (
    HUB_RANK,
    AnyRecord,
    Asked,
    Batch,
    Beat,
    Bye,
    Calls,
    Collective,
    Command,
    Duration,
    Gpu,
    Hello,
    Host,
    Joined,
    Memory,
    Output,
    Refused,
    Stacks,
    Step,
    Steps,
    Tick,
    Transfer,
    Unanswered,
)


class RunState(msgspec.Struct):
    """Everything the hub knows of a run.

    Attributes:
        now_ns: The latest monotonic time any sender has told; the hub ticks once a second.
        frames: Frames applied so far; numbers the hub's outgoing stream.
        wall_s: The wall clock at that moment, as that sender has it.
        diagnoses: Findings that hold now, with the step they began at (see `diagnose`).
        silent_ns: By kind, when the rule of a finding that holds first had nothing to say.
        alerts: What has held so far, the oldest first.
        others: The run's other hosts, as far as their hubs have joined this one.
        joined: How this hub stands to those; None on one host.
        output: The last lines that ranks have printed.
        hosts: How many ranks each has.
        told_size: Processes in the run, as its ranks say.
        reviewed_ns: When diagnoses were last looked at.
        lanes: Devices of all ranks, `cells` their kinds of collectives: bounded (see `bounds`).
        refused: Records of ranks beyond those that there is room for.
        began_s: The wall clock when it was first heard of.
        command: What `dpwatch run` says of its command, None without one.
        claims: What is wrong with two processes that both say they are one rank, "" if none do.
        earlier: Runs of this name that were over before it began, the oldest first.
        pending: Of many ranks, collectives that are to be booked together: call `settle` before
            sums or arrivals are read.
        offsets: Which ranks are some steps ahead of the others or behind.
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
    step_ms: Envelope = msgspec.field(default_factory=Envelope)
    first_loss: tuple[int, float] | None = None
    last_loss: tuple[int, float] | None = None
    losses: dict[int, OpenLoss] = {}
    diagnoses: list[Diagnosis] = []
    silent_ns: dict[str, int] = {}
    alerts: list[Alert] = []
    others: dict[str, Host] = {}
    joined: Joined | None = None
    output: RunOutput = msgspec.field(default_factory=RunOutput)
    hosts: dict[str, int] = {}
    told_size: int = 1
    reviewed_ns: int = 0
    lanes: int = 0
    cells: int = 0
    refused: int = 0
    pending: Pending = msgspec.field(default_factory=Pending)
    offsets: StepOffsets = msgspec.field(default_factory=StepOffsets)
    began_s: float = 0.0
    command: Command | None = None
    claims: str = ""
    earlier: list[Run] = []

    def apply(self, batch: Batch) -> None:
        """Takes in one frame."""
        self.frames += 1
        if batch.mono_ns >= self.now_ns:
            self.now_ns, self.wall_s = batch.mono_ns, batch.wall_ns / 1e9
        if batch.rank == HUB_RANK:
            self._hub(batch)
            return
        self.began_s = self.began_s or batch.wall_ns / 1e9
        try:
            rank = self._rank(batch)
        except bounds.Full:
            self.refused += counted(batch.records)
            return
        together = len(self.ranks) > MANY and settler_of_many() is not None
        if self.pending.is_due or not together:
            settle(self)
        for told in batch.records:
            record = generations.in_run(self, rank, told)
            if isinstance(record, Bye):
                self._bye(rank, record, batch)
            elif not (together and self.pending.take(rank, record)):
                self.take(rank, record, batch.mono_ns)

    def take(self, rank: RankState, record: AnyRecord, now_ns: int = 0) -> None:
        """Takes in a record, sent at that time."""
        try:
            match record:
                case Step():
                    self._step(rank, record)
                case Calls() | Steps():
                    for each in one_by_one((record,)):
                        self.take(rank, each, now_ns)
                case Collective():
                    booking.collective(self, rank, record)
                case Duration():
                    booking.duration(self, rank, record)
                case Transfer():
                    self._transfer(rank, record)
                case Memory():
                    _memory(self.lane(rank, record.device), record)
                case Beat():
                    self._beat(rank, record)
                case Gpu():
                    self.lane(rank, record.device).gpu = record
                case Output():
                    self.output.take(rank.rank, record, rank.hello.world_size if rank.hello else 1)
                case Hello():
                    self._hello(rank, record)
                case Stacks():
                    rank.dump.take(record, max(self.world_size, len(self.ranks)))
                case Refused():
                    rank.refused += 1
        except (bounds.Full, OverflowError):  # no room, or numbers that no run has
            rank.refused += 1

    def _hub(self, batch: Batch) -> None:
        for record in batch.records:
            match record:
                case Host():
                    self.others[record.host] = record
                case Joined():
                    self.joined = record
                case Command():
                    self.command = record
                case Asked() | Unanswered():
                    hear(self, record, batch.mono_ns)
                case Tick():
                    for silent in record.silent:
                        rank = self.ranks.get(silent.rank)
                        if rank is not None and rank.pid == silent.pid:
                            rank.process = silent.process

    def _rank(self, batch: Batch) -> RankState:
        rank = self.ranks.get(batch.rank)
        if rank is None or rank.pid != batch.pid:
            rank = self._newcomer(batch, rank)
        if batch.seq >= 0:
            if rank.seen is not None and rank.seen.exit is None:
                rank.seen = None  # It was only silent: here it speaks again.
                rank.bye = rank.own
            if rank.own is not None and rank.own.then == "idle":
                rank.own, rank.bye = None, rank.seen  # It has turned to this run again.
            rank.received.add(batch.seq)
            if batch.sent is not None and batch.sent - rank.taken > rank.missed:
                rank.missed = batch.sent - rank.taken
            rank.taken += counted(batch.records)
        rank.seen_ns = batch.mono_ns
        rank.process = ""
        if batch.dropped > rank.dropped:
            rank.dropped = batch.dropped
        return rank

    def _bye(self, rank: RankState, record: Bye, batch: Batch) -> None:
        if batch.seq >= 0:
            rank.own = record
            rank.whole_steps = max(rank.whole_steps, rank.steps_done)  # all it had to say
        else:
            rank.seen = record
            rank.exited_ns = 0 if record.exit is None else batch.mono_ns
        if rank.bye is None:
            rank.ended_ns = self.end_ns = batch.mono_ns
        rank.bye = joined(rank.own, rank.seen, rank.worker)

    def forget(self, r: int) -> dict[str, int] | None:
        """Another process has this rank now: its steps and calls count from 0 again.

        Returns:
            The generations of groups that it has left, None if nothing was known of it.
        """
        settle(self)
        self.arrivals.forget(r)
        self.offsets.forget(r)
        before = self.ranks.pop(r, None)
        if before is not None:
            self.lanes -= len(before.lanes)
            self.cells -= before.cells
            self.hosts[before.host] -= 1
            if not self.hosts[before.host]:
                del self.hosts[before.host]
        for key in [key for key, route in self.routes.items() if route.rank == r]:
            del self.routes[key]
        return None if before is None else generations.left(before)

    def admit(self, rank: RankState) -> None:
        """A rank that was not known, or whose process is another one now."""
        self.hosts[rank.host] = self.hosts.get(rank.host, 0) + 1
        in_order = rank.rank > next(reversed(self.ranks), -1)
        self.ranks[rank.rank] = rank
        if not in_order:
            self.ranks = dict(sorted(self.ranks.items()))

    def count_room(self) -> None:
        """Counts lanes and kinds of collectives anew, once another state has been taken in."""
        for rank in self.ranks.values():
            rank.cells = len(rank.peers) + sum(len(lane.calls) for lane in rank.lanes.values())
        self.lanes = sum(len(rank.lanes) for rank in self.ranks.values())
        self.cells = sum(rank.cells for rank in self.ranks.values())

    def _newcomer(self, batch: Batch, before: RankState | None) -> RankState:
        if before is None and len(self.ranks) >= bounds.RANKS:
            raise bounds.Full
        rank = RankState(batch.rank, batch.host, batch.pid)
        if before is not None:
            rank.left = self.forget(batch.rank)
        elif batch.rank >= self.told_size:  # the run grows
            rank.left = {}
        self.admit(rank)
        if before is not None and before.hello:
            self.measure()
        return rank

    def _hello(self, rank: RankState, record: Hello) -> None:
        before, rank.hello = rank.hello, record
        rank.groups = record.groups or rank.groups
        if before is None or before.world_size != record.world_size:
            self.measure(record.world_size if before is None else None)

    def measure(self, more: int | None = None) -> None:
        """Keeps `told_size`; over all ranks only where it may have become less."""
        if more is not None:
            self.told_size = max(self.told_size, more)
        else:
            told = [rank.hello.world_size for rank in self.ranks.values() if rank.hello]
            self.told_size = max([1, *told])

    def _step(self, rank: RankState, record: Step) -> None:
        lane = rank.lanes.get(record.device) or self.lane(rank, record.device)
        lane.recent.push(record)
        if record.step >= lane.steps:
            lane.steps = record.step + 1
        if record.step >= rank.whole_steps:  # a step's calls come before it
            rank.whole_steps = record.step + 1
        took_ms = (record.end_ns - record.start_ns) / 1e6
        lane.step_ms.push(record.step, took_ms)
        rank.progress_ns = max(rank.progress_ns, record.end_ns)
        if self.start_ns is None or record.start_ns < self.start_ns:
            self.start_ns = record.start_ns
        if record.device == 0:
            if record.loss is not None:
                self.judge_loss(rank, record.step, record.loss)
                self.add_loss(record.step, record.loss)
            if rank.rank == next(iter(self.ranks)):
                self.step_ms.push(record.step, took_ms)

    def _beat(self, rank: RankState, record: Beat) -> None:
        """A beat counts the steps done; of short ones not every one has a record.

        It goes first in its frame, so calls that were made before it may come after it, but not
        after the next.
        """
        if rank.beat is not None:
            rank.whole_steps = max(rank.whole_steps, rank.beat.step)
        rank.beat = record
        if 0 in rank.lanes:
            lane = rank.lanes[0]
            lane.steps = max(lane.steps, record.step)

    def judge_loss(self, rank: RankState, step: int, loss: float) -> None:
        """Whether a rank's loss is a number."""
        if math.isfinite(loss):
            rank.good_loss, rank.bad_loss = (step, loss), None
        elif rank.bad_loss is None:
            rank.bad_loss = BadLoss(step, str(loss), rank.good_loss)

    def add_loss(self, step: int, loss: float, count: int = 1) -> None:
        """Means a step's loss over the ranks, once all have told theirs.

        Ranks of short steps need not read their loss in the same ones; a mean over some ranks
        would be another number, so what stays incomplete is let go. `loss` is the sum of `count`.
        """
        entry = self.losses.get(step)
        if entry is None:
            entry = self.losses[step] = OpenLoss()
        entry.total += loss
        entry.count += count
        if entry.count >= self.told_size:
            self.close_loss(step)
        elif len(self.losses) > OPEN_LOSSES:
            del self.losses[min(self.losses)]

    def close_loss(self, step: int) -> None:
        """No rank is still to tell that step's loss."""
        entry = self.losses.pop(step)
        mean = entry.total / entry.count
        if self.first_loss is None or step < self.first_loss[0]:
            self.first_loss = (step, mean)
        if self.last_loss is None or step >= self.last_loss[0]:
            self.last_loss = (step, mean)
            self.loss.push(step, mean)

    def lane(self, rank: RankState, device: int) -> LaneState:
        """That device of a rank, made at first use."""
        lane = rank.lanes.get(device)
        if lane is None:
            if len(rank.lanes) >= bounds.LANES_A_RANK or self.lanes >= bounds.LANES:
                raise bounds.Full
            lane = rank.lanes[device] = LaneState(rank.rank, device)
            rank.lanes = dict(sorted(rank.lanes.items()))
            self.lanes += 1
        return lane

    def _transfer(self, rank: RankState, record: Transfer) -> None:
        key = f"{rank.rank}/{record.kind}/{record.src}/{record.dst}"
        route = self.routes.get(key)
        if route is None:
            if len(self.routes) >= bounds.ROUTES:
                raise bounds.Full
            route = Route(rank.rank, record.kind, record.src, record.dst)
            self.routes[key] = route
        at, cells = route.by_step.at(record.step), route.by_step.cells
        if at is not None:
            if booking.is_full(cells, at):
                raise bounds.Full
            cells[at + CALLS] += 1
            cells[at + NBYTES] += record.nbytes
            cells[at + TIMED_CALLS] += 1
            cells[at + TIMED_NS] += record.duration_ns

    def clock_error_ns(self, hosts: Iterable[str]) -> int | None:
        """How far off times of ranks on two of these hosts may be from each other.

        0 on one host. None where their clocks don't compare: one of them has not been heard of by
        the head, whose own host is the one that `others` has no entry of.
        """
        names = set(hosts)
        if len(names) < 2:
            return 0
        others = [self.others[name].error_ns for name in names if name in self.others]
        if len(others) < len(names) - 1 or None in others:
            return None
        return sum(sorted(error for error in others if error is not None)[-2:])

    @property
    def gone(self) -> list[RankState]:
        """Ranks that have died, the one first that the others followed. None that Ctrl-C ended."""
        return [rank for rank, _ in self.died()]

    def died(self, *, explained: bool = False) -> list[tuple[RankState, str]]:
        """Ranks that have ended without finishing, and how; none that Ctrl-C ended.

        Args:
            explained: See `endings.ends`.
        """
        return [] if self.stopped else self._unstopped(explained=explained)

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C ended the run: some ranks, and the others because these were gone."""
        others = self._unstopped()
        some = len(others) < len(ends(self.ranks.values()))
        return some and not any(how in BY_ITSELF for _, how in others)

    def _unstopped(self, *, explained: bool = False) -> list[tuple[RankState, str]]:
        found = ends(self.ranks.values(), explained=explained)
        return [(rank, how) for rank, how in found if not was_stopped(rank, self.command)]

    @property
    def world_size(self) -> int:
        """Processes in the run, as its ranks say."""
        return self.told_size


def kept_earlier(runs: list[Run]) -> list[Run]:
    """The latest of them, as many as there is room for."""
    kept: list[Run] = []
    rows = 0
    for run in reversed(runs[-bounds.EARLIER :]):
        rows += len(run.ranks)
        if rows > bounds.EARLIER_ROWS:
            break
        kept.insert(0, run)
    return kept


def encode(state: RunState) -> bytes:
    """A state as it travels to a viewer that comes late."""
    settle(state)
    return _encoder.encode(state)


def decode(data: bytes | memoryview) -> RunState:
    """A state that has travelled.

    Raises:
        msgspec.MsgspecError, RecursionError, UnicodeDecodeError: It is none.
    """
    return _decoder.decode(data)


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)
_decoder = msgspec.msgpack.Decoder(RunState, dec_hook=unpacked)


def _memory(lane: LaneState, record: Memory) -> None:
    if lane.memory is not None and lane.memory.source != record.source:
        lane.peak_bytes, lane.highest = Envelope(), None  # of something else
    lane.memory = record
    lane.peak_bytes.push(record.step, record.peak_bytes)
    # Resident size hardly falls when memory is freed, and says little of what is held.
    by_heap = record.source == "rss" and record.heap_bytes is not None
    account = "heap" if by_heap else record.source
    if lane.held_from != account:
        lane.held_bytes, lane.held_samples, lane.held_from = Thinned(), Thinned(), account
    held = record.heap_bytes if by_heap else record.current_bytes
    lane.held_bytes.push(record.step, held or 0)
    newest = lane.recent.column(SAMPLES, 1)  # of this step, or of one shortly before
    lane.held_samples.push(record.step, max(0, newest[0]) if newest else 0)
    if lane.highest is None or record.peak_bytes >= lane.highest.peak_bytes:
        lane.highest = record
