"""Lanes: one device's timeline in this process, and what its thread's time went into.

A lane adds up, from one step end to the next, the wall time of each phase and, on the steps that
are measured, the thread's run-queue and blocked time. Blocked time is booked under what could have
blocked the thread there:

- `GIL`: inside a phase (or a worker's job) nothing of the trainer's or of ours waits, so it
  was the interpreter lock;
- `COMM`: in a phase that issued collectives, it was communication that compute waited for;
- `IDLE`: everywhere else, and inside `waiting()`.

What ran is the rest, so that the four sum to the wall time exactly.

Phases nest: a closure runs forward and backward inside the optimizer's step. `enter` returns what
to go back to, and whoever entered hands that to `leave`. So each hook restores what it found, and
an exception anywhere between (an interrupt in the probe's own code, even) can't leave nested
counts behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dpwatch.probe.steps.step_record import (
    BUSY,
    COMM,
    EMPTY,
    GIL,
    IDLE,
    MOVED,
    MOVES,
    RUNQUEUE,
    SEEN,
)
from dpwatch.probe.steps.thread_clock import Clocks, Sample, ThreadClock
from dpwatch.wire.messages import PHASES

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.nn import Module
    from torch.optim import Optimizer

    from dpwatch.probe.steps.cuda_events import DeviceTimes

DATA, H2D, FORWARD, BACKWARD, OPTIMIZER = range(len(PHASES))
NO_PHASE = -1
KEPT = -2
"""Returned by `enter` where the phase under way goes on: there is nothing to leave."""

_APART = {
    DATA: frozenset({BACKWARD, OPTIMIZER}),
    H2D: frozenset({BACKWARD, OPTIMIZER}),
    FORWARD: frozenset({BACKWARD, OPTIMIZER}),
    BACKWARD: frozenset({OPTIMIZER}),
    OPTIMIZER: frozenset({DATA, H2D, FORWARD, BACKWARD}),
}
"""Phases that count apart inside another one; all others belong to it, such as the forward that
checkpointing repeats inside backward."""

MOST_EVENTS = 512
"""Events of a step after which it is asked what they cost so far."""


class Here(threading.local):
    """The calling thread's lane, if it has one, and its clock."""

    lane: Lane | None = None
    clock: ThreadClock | None = None


here = Here()


class Events(Protocol):
    """What hooks tell of a thread's work, to whoever finds steps in it (`tracker.Steps`).

    Those that begin something return what `Lane.leave` goes back to, `KEPT` if it does not count.

    Attributes:
        main: The training thread's lane.
        skipped_backwards: Backwards of a step that is only counted …
        notify_after: … and from how many on they are told of one by one.
    """

    main: MainLane
    skipped_backwards: int
    notify_after: int

    def module_begins(
        self, lane: Lane, module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> int:
        """An outermost module is called."""

    def pass_raised(self, lane: Lane) -> None:
        """A forward or backward has raised, and does so still."""

    def data_begins(self, lane: Lane) -> int:
        """A data loader is asked for a batch."""

    def backward_begins(self, lane: Lane) -> int:
        """Backward, or `torch.autograd.grad`, is called."""

    def backward_ends(
        self,
        lane: Lane,
        before: int,
        roots: Sequence[Any],
        gradients: Sequence[Any],
        *,
        done: bool,
        keeps: bool,
    ) -> None:
        """It is over, `done` unless it raised; `keeps`: its gradients are added up."""

    def optimizer_begins(self, lane: Lane, optimizer: Optimizer) -> None:
        """An optimizer's step begins, perhaps inside another's."""

    def optimizer_ends(self, lane: Lane, optimizer: Optimizer) -> None:
        """It is over."""

    def skipped_backward(self) -> None:
        """A backward of a step that is only counted is over."""

    def skipped_optimizer_begins(self, lane: Lane) -> None:
        """An optimizer's step in such a step begins."""

    def skipped_optimizer_ends(self, lane: Lane) -> None:
        """It is over."""

    def scaled(self, scaler: GradScaler, outputs: Any) -> None:
        """A GradScaler has scaled these losses."""

    def end_step(self) -> None:
        """The script says that its step ends here."""

    def set_samples(self, lane: Lane, n: int) -> None:
        """The trainer counts its samples itself."""

    def phase_begins(self, lane: Lane, phase: int) -> int:
        """The trainer names a phase itself."""


class Lane:
    """A worker thread's lane: its thread belongs to the device during a job only.

    Attributes:
        steps: Whose steps the lane's work belongs to.
        in_module: Inside a module call or a backward, so module calls go straight through; for
            good once the probe is `over`.
        sampled_out: The step is only counted: hooks pass by, but for backward and the optimizer.
        over: The probe, or this lane's part in it, has ended.
        taken: A thread has a job for this lane at the moment.
        sums: Of the step under way, laid out as in `step_record`.
        transfers: Bytes and nanoseconds by (kind, source, destination).
        phase: Index into `PHASES`, `NO_PHASE` between phases.
        named: The phase is one that the trainer named itself (`probe.phase`).
        measuring: Whether thread times are read in this step.
        events: What the hooks have done in this step, in units of one phase entered.
        most_events: How many of them there may be before their cost is looked at.
        updating: What to go back to at the end of each optimizer's step that is under way.
    """

    __slots__ = (
        "_left_ns",
        "_mark",
        "_read",
        "_wait_ns",
        "_waits",
        "clock",
        "device",
        "events",
        "in_module",
        "measuring",
        "most_events",
        "named",
        "over",
        "phase",
        "phase_start",
        "sampled_out",
        "steps",
        "sums",
        "taken",
        "transfers",
        "updating",
        "wall",
    )

    between = GIL
    """What blocked time between the phases counts as."""

    def __init__(self, device: int, clocks: Clocks, steps: Events) -> None:
        self.device = device
        self.steps = steps
        self.wall: Callable[[], int] = clocks.wall
        self.clock: ThreadClock | None = None
        self._read: Callable[[], Sample] | None = None
        self.in_module = False
        self.over = False
        self.sampled_out = False
        self.taken = False
        self.measuring = False
        self.phase = NO_PHASE
        self.named = False
        self.events = 0
        self.most_events = MOST_EVENTS
        self.updating: list[int] = []
        self.phase_start = 0
        self._waits = 0
        self._wait_ns = self._left_ns = 0
        self._mark: Sample = (0, 0, 0)
        self.sums = EMPTY.copy()
        self.transfers: dict[tuple[str, int, int], list[int]] = {}

    # -- jobs: a thread takes the lane and leaves it ------------------------------------------

    def adopt(self, clock: ThreadClock, *, measuring: bool) -> None:
        """The calling thread works for this lane from now on."""
        self.clock, self._read, self.measuring = clock, clock.read, measuring
        if measuring:
            self._mark = clock.read()

    def release(self) -> None:
        """The calling thread's job is over."""
        if self.measuring:
            self.sample(self.between)

    def end(self) -> None:
        """The probe is over: hooks that can't be removed pass by this lane from now on."""
        self.over = self.in_module = True
        self.measuring = False

    def begin_skipping(self) -> None:
        """Steps are only counted from here on."""
        self.sampled_out = self.in_module = True
        self.measuring = False

    def end_skipping(self) -> None:
        """A step begins that is looked at."""
        self.sampled_out = False
        self.in_module = self.over
        self.phase, self.named, self.events = NO_PHASE, False, 0
        self.sums = EMPTY.copy()
        self.transfers = {}
        self.updating = []

    # -- phases -------------------------------------------------------------------------------

    def enter(self, phase: int) -> int:
        """Enters a phase. Returns: what `leave` is to be given, `KEPT` if it changes nothing."""
        before = self.phase
        self.events += 1
        if before == NO_PHASE:
            now = self._phase_begins(phase) if self.measuring else self.wall()
        elif phase in _APART[before]:
            self._book()
            now = self._phase_begins(phase) if self.measuring else self.wall()
        else:
            return KEPT
        self.phase, self.phase_start = phase, now
        return before

    def leave(self, before: int) -> int:
        """Leaves it. Returns: when that was.

        Args:
            before: What `enter` returned, and not `KEPT`.
        """
        now = self._book()
        self.phase = before
        if before != NO_PHASE:
            self.phase_start = self._phase_begins(before) if self.measuring else now
        return now

    def _book(self) -> int:
        """Adds up the phase under way. Returns: now."""
        phase, sums = self.phase, self.sums
        if phase == NO_PHASE:  # the lane has slept in between
            return self.wall()
        now = self._phase_ends(phase) if self.measuring else self.wall()
        sums[phase] += now - self.phase_start
        sums[SEEN] |= 1 << phase
        return now

    def forget_phase(self) -> None:
        """An exception tore the lane out of a phase whose end nobody announced."""
        self.phase, self.named = NO_PHASE, False

    def _phase_begins(self, phase: int) -> int:
        return self.wall()

    def _phase_ends(self, phase: int) -> int:
        return self.wall()

    # -- waits --------------------------------------------------------------------------------

    def wait_begins(self) -> None:
        """From here the thread waits for another one of the trainer's."""
        self._waits += 1
        if self._waits == 1:
            if self.measuring:
                self.sample(self.blocked_as())
            self._wait_ns = self.wall()

    def wait_ends(self) -> None:
        """Up to here it did."""
        self._waits -= 1
        if not self._waits:
            if self.measuring:
                self.sample(IDLE)
            if self.phase == OPTIMIZER:  # what it waits for are updates on other devices
                self.phase_start += self.wall() - self._wait_ns

    def blocked_as(self) -> int:
        """What time blocked at this place counts as."""
        return self.between

    def suspend(self) -> None:
        """The thread turns to another lane: this one's device has nothing to do meanwhile."""
        if self.measuring:
            self.sample(self.blocked_as())
        self._left_ns = self.wall()

    def resume(self) -> None:
        """The thread is back; a phase it left stood still meanwhile."""
        self.phase_start += self.wall() - self._left_ns
        if self.measuring and self._read is not None:
            now = self._read()
            away = now[0] - self._mark[0]
            self.sums[BUSY] += away
            self.sums[IDLE] += away
            self._mark = now

    def sample(self, blocked_as: int) -> int:
        """Books the time since the last sample. Returns: now."""
        if self._read is None:
            return self.wall()
        was = self._mark
        self._mark = now = self._read()
        wall = now[0] - was[0]
        queued = now[2] - was[2]
        blocked = wall - (now[1] - was[1]) - queued
        sums = self.sums
        sums[BUSY] += wall
        sums[RUNQUEUE] += queued
        if blocked > 0:  # clocks read one after another may disagree by a little
            sums[blocked_as] += blocked
        return now[0]

    def moved(self, kind: str, src: int, dst: int, nbytes: int, duration_ns: int) -> None:
        """Books one copy between devices."""
        self.sums[MOVES] += 1
        self.sums[MOVED] += duration_ns
        total = self.transfers.get((kind, src, dst))
        if total is None:
            self.transfers[kind, src, dst] = [nbytes, duration_ns]
        else:
            total[0] += nbytes
            total[1] += duration_ns


class Issues(Protocol):
    """Who counts the collectives that this process issues, by any thread; the count only grows."""

    issued: int


class MainLane(Lane):
    """A training thread's lane: it belongs to it always, so its time is booked by phase.

    Attributes:
        thread: That thread's `threading.get_ident()`.
        on_device: Times its phases on the device, None where the lane's own time says all.
    """

    __slots__ = ("_collectives", "_issued_before", "on_device", "thread")

    between = IDLE

    def __init__(self, clocks: Clocks, collectives: Issues, steps: Events, device: int = 0) -> None:
        super().__init__(device, clocks, steps)
        self.thread = threading.get_ident()
        self._collectives = collectives
        self._issued_before = 0
        self.on_device: DeviceTimes | None = None

    def forget_phase(self) -> None:
        """See `Lane`."""
        super().forget_phase()
        if self.on_device is not None:
            self.on_device.interrupt()

    def suspend(self) -> None:
        """See `Lane`."""
        super().suspend()
        if self.on_device is not None:  # its stream may stand still meanwhile, and nobody sees it
            self.on_device.interrupt()

    def _phase_begins(self, phase: int) -> int:
        # Waiting for data is idle like the time before it: no need to tell them apart.
        if phase == DATA:
            return self.wall()
        self._issued_before = self._collectives.issued
        if self.on_device is not None:
            self.on_device.phase_begins(phase)
        return self.sample(IDLE)

    def _phase_ends(self, phase: int) -> int:
        if phase == DATA:
            return self.wall()
        if self.on_device is not None:
            self.on_device.phase_ends(phase)
        return self.sample(self.blocked_as())

    def blocked_as(self) -> int:
        """See `Lane`; in a phase that issued collectives it is communication."""
        if self.phase in (NO_PHASE, DATA):
            return IDLE
        return COMM if self._collectives.issued != self._issued_before else GIL
