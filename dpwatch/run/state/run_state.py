"""The state of a run. Only `apply` changes it, so it can be replayed from frames.

It consists of msgspec Structs whose size is bounded whatever the run's length, and is sent to other
hubs as a whole. `summarize` derives from it what users see.
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
    """Everything the hub knows about a run.

    Attributes:
        now_ns: The latest monotonic time of any sender; the hub ticks once a second.
        frames: Number of frames applied; numbers the hub's outgoing stream.
        wall_s: The same sender's wall clock at that moment.
        diagnoses: Findings that hold now, with the step they began at (see `diagnose`).
        silent_ns: By kind, when the rule of a finding that still holds stopped firing.
        alerts: Findings so far, oldest first.
        others: The run's other hosts whose hubs have joined this one.
        joined: This hub's role among them; None on one host.
        output: The last lines printed by ranks.
        hosts: Number of ranks per host.
        world_size: World size as reported by the ranks.
        reviewed_ns: When diagnoses were last reviewed.
        lanes: Number of devices of all ranks; limited, like `cells` (see `bounds`).
        cells: Sum of the ranks' `cells`.
        refused: Records of ranks beyond the limit on ranks.
        began_s: Wall clock at the first frame of a rank.
        command: What `dpwatch run` reports about its command, None without one.
        claims: Describes two processes that claim the same rank, "" if there are none.
        earlier: Runs with this id that ended before it began, oldest first.
        pending: Records not yet in the sums; call `flush` before reading sums or arrivals.
        offsets: Ranks that are some steps ahead of the others or behind.
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
    world_size: int = 1
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

    def add_rank(self, rank: RankState) -> None:
        """Adds a rank that is new or has a new process."""
        self.hosts[rank.host] = self.hosts.get(rank.host, 0) + 1
        in_order = rank.rank > next(reversed(self.ranks), -1)
        self.ranks[rank.rank] = rank
        if not in_order:
            self.ranks = dict(sorted(self.ranks.items()))

    def recount(self) -> None:
        """Recounts `lanes` and `cells` after a merge."""
        for rank in self.ranks.values():
            rank.cells = len(rank.peers) + sum(len(lane.calls) for lane in rank.lanes.values())
        self.lanes = sum(len(rank.lanes) for rank in self.ranks.values())
        self.cells = sum(rank.cells for rank in self.ranks.values())

    def update_world_size(self, more: int | None = None) -> None:
        """Updates `world_size`: raises it to `more`, or recomputes it if it may have shrunk."""
        if more is not None:
            self.world_size = max(self.world_size, more)
        else:
            sizes = [rank.hello.world_size for rank in self.ranks.values() if rank.hello]
            self.world_size = max([1, *sizes])

    def record_loss(self, rank: RankState, step: int, loss: float) -> None:
        """Records a rank's loss as its last finite or its first non-finite one."""
        if math.isfinite(loss):
            rank.good_loss, rank.bad_loss = (step, loss), None
        elif rank.bad_loss is None:
            rank.bad_loss = BadLoss(step, str(loss), rank.good_loss)

    def add_loss(self, step: int, loss: float, count: int = 1) -> None:
        """Adds losses to a step, and computes its mean once all ranks have reported.

        Ranks with short steps may read their loss in different steps. A mean over some ranks would
        be a different quantity, so steps that stay incomplete are dropped.

        Args:
            step: The step.
            loss: Sum of `count` ranks' losses.
            count: Number of ranks.
        """
        entry = self.losses.get(step)
        if entry is None:
            entry = self.losses[step] = OpenLoss()
        entry.total += loss
        entry.count += count
        if entry.count >= self.world_size:
            self.close_loss(step)
        elif len(self.losses) > OPEN_LOSSES:
            del self.losses[min(self.losses)]

    def close_loss(self, step: int) -> None:
        """Adds a step's mean loss to the curve once all ranks have reported it."""
        entry = self.losses.pop(step)
        mean = entry.total / entry.count
        if self.first_loss is None or step < self.first_loss[0]:
            self.first_loss = (step, mean)
        if self.last_loss is None or step >= self.last_loss[0]:
            self.last_loss = (step, mean)
            self.loss.push(step, mean)

    def lane(self, rank: RankState, device: int) -> LaneState:
        """A rank's lane for a device, created on first use.

        Raises:
            bounds.LimitReached: There are too many lanes.
        """
        lane = rank.lanes.get(device)
        if lane is None:
            if len(rank.lanes) >= bounds.LANES_A_RANK or self.lanes >= bounds.LANES:
                raise bounds.LimitReached
            lane = rank.lanes[device] = LaneState(rank.rank, device)
            rank.lanes = dict(sorted(rank.lanes.items()))
            self.lanes += 1
        return lane

    def clock_error_ns(self, hosts: Iterable[str]) -> int | None:
        """Largest error, in nanoseconds, between the converted clocks of any two of these hosts.

        0 for one host. None if their clocks don't compare, because the head has no estimate for one
        of them. The head's own host has no entry in `others`.
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
        """Ranks that died, most likely cause first, without those that Ctrl-C ended."""
        return [rank for rank, _ in self.died()]

    def died(self, *, explained: bool = False) -> list[tuple[RankState, str]]:
        """Ranks that ended without finishing, and how, without those that Ctrl-C ended.

        Args:
            explained: See `endings.ends`.
        """
        return [] if self.stopped else self._unstopped(explained=explained)

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C ended the run: some ranks directly, the others as a consequence."""
        others = self._unstopped()
        some = len(others) < len(ends(self.ranks.values()))
        return some and not any(how in BY_ITSELF for _, how in others)

    def _unstopped(self, *, explained: bool = False) -> list[tuple[RankState, str]]:
        found = ends(self.ranks.values(), explained=explained)
        return [(rank, how) for rank, how in found if not was_stopped(rank, self.command)]


def kept_earlier(runs: list[Run]) -> list[Run]:
    """The latest runs within the limits `EARLIER` and `EARLIER_ROWS`."""
    kept: list[Run] = []
    rows = 0
    for run in reversed(runs[-bounds.EARLIER :]):
        rows += len(run.ranks)
        if rows > bounds.EARLIER_ROWS:
            break
        kept.insert(0, run)
    return kept
