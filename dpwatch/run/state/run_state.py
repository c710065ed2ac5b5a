"""A run's state. It moves in one place, `apply`, and so can be replayed from its frames.

All of it is data (msgspec Structs), bounded whatever the run's length, and travels whole to a
viewer that comes late. What people see is computed from it in `summarize`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from dpwatch.run.model.snapshot import Alert, Diagnosis, Run
from dpwatch.run.state import bounds
from dpwatch.run.state.arrivals import Arrivals
from dpwatch.run.state.curves import Envelope, Thinned
from dpwatch.run.state.endings import BY_ITSELF, ends
from dpwatch.run.state.exits import was_stopped
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
from dpwatch.run.state.pending import Pending
from dpwatch.run.state.step_offsets import StepOffsets
from dpwatch.wire.messages import (
    Command,
    Host,
    Joined,
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

    def measure(self, more: int | None = None) -> None:
        """Keeps `told_size`; over all ranks only where it may have become less."""
        if more is not None:
            self.told_size = max(self.told_size, more)
        else:
            told = [rank.hello.world_size for rank in self.ranks.values() if rank.hello]
            self.told_size = max([1, *told])

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
