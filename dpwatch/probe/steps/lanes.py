"""Lanes: the timeline of one device in this process, and what its thread's time was spent on.

From one step end to the next, a lane sums the wall time of each phase and, in measured steps, the
thread's run-queue and blocked time. Blocked time is attributed to what could have blocked the
thread there:

- `GIL`: inside a phase (or a worker's job) neither the trainer nor the probe waits, so it was the
  interpreter lock;
- `COMM`: in a phase that issued collectives, it was communication that compute waited for;
- `IDLE`: everywhere else, and inside `waiting()`.

The remainder is running time, so the four sum to the wall time exactly.

Phases nest: a closure runs forward and backward inside the optimizer's step. `enter` returns the
state to restore, which the caller passes to `leave`. So each hook restores what it found, and an
exception in between (even an interrupt in the probe's own code) cannot leave nested counts behind.
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
"""Returned by `enter` if the current phase continues, so there is nothing to leave."""

_APART = {
    DATA: frozenset({BACKWARD, OPTIMIZER}),
    H2D: frozenset({BACKWARD, OPTIMIZER}),
    FORWARD: frozenset({BACKWARD, OPTIMIZER}),
    BACKWARD: frozenset({OPTIMIZER}),
    OPTIMIZER: frozenset({DATA, H2D, FORWARD, BACKWARD}),
}
"""Phases that are counted separately inside another one. All others are part of it, such as the
forward that checkpointing repeats inside backward."""

MOST_EVENTS = 512
"""Events in a step after which their cost is checked."""


class Here(threading.local):
    """The calling thread's lane and clock, if it has them."""

    lane: Lane | None = None
    clock: ThreadClock | None = None


here = Here()


class Events(Protocol):
    """What hooks report about a thread's work, to whoever finds steps in it (`tracker.Steps`).

    Methods that begin something return what `Lane.leave` takes, `KEPT` if it does not count.

    Attributes:
        main: The training thread's lane.
        skipped_backwards: Number of backwards so far in a skipped step.
        notify_after: From this number on, `skipped_backward` is called for each.
    """

    main: MainLane
    skipped_backwards: int
    notify_after: int

    def module_begins(
        self, lane: Lane, module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> int:
        """An outermost module is called."""

    def pass_raised(self, lane: Lane) -> None:
        """A forward or backward raised an exception, which is propagating."""

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
        """It ended, `done` unless it raised; `keeps`: its gradients are accumulated."""

    def optimizer_begins(self, lane: Lane, optimizer: Optimizer) -> None:
        """An optimizer's step begins, perhaps inside another's."""

    def optimizer_ends(self, lane: Lane, optimizer: Optimizer) -> None:
        """It ended."""

    def skipped_backward(self) -> None:
        """A backward of a skipped step ended."""

    def skipped_optimizer_begins(self, lane: Lane) -> None:
        """An optimizer's step begins in a skipped step."""

    def skipped_optimizer_ends(self, lane: Lane) -> None:
        """It ended."""

    def scaled(self, scaler: GradScaler, outputs: Any) -> None:
        """A GradScaler scaled these losses."""

    def end_step(self) -> None:
        """The script declares that its step ends here."""

    def set_samples(self, lane: Lane, n: int) -> None:
        """The trainer counts its samples itself."""

    def phase_begins(self, lane: Lane, phase: int) -> int:
        """The trainer declares a phase itself."""


class Lane:
    """A worker thread's lane: its thread belongs to the device only during a job.

    Attributes:
        steps: The `Steps` that the lane's work belongs to.
        in_module: Inside a module call or a backward, so nested module calls are passed through;
            stays True once the probe is `over`.
        sampled_out: The step is skipped: hooks return at once, except for backward and the
            optimizer.
        over: The probe, or this lane's part in it, has ended.
        taken: A thread currently has a job for this lane.
        sums: Sums over the current step, laid out as in `step_record`.
        transfers: Bytes and nanoseconds by (kind, source, destination).
        phase: Index into `PHASES`, `NO_PHASE` between phases.
        named: The phase was declared by the trainer (`probe.phase`).
        measuring: Whether thread times are read in this step.
        events: Work done by the hooks in this step; the unit is one phase entered.
        most_events: Number of events after which their cost is checked.
        updating: What to restore at the end of each optimizer's step in progress.
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
    """What blocked time between phases counts as."""

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
        """The calling thread's job has ended."""
        if self.measuring:
            self.sample(self.between)

    def end(self) -> None:
        """The probe has ended: hooks that cannot be removed ignore this lane from now on."""
        self.over = self.in_module = True
        self.measuring = False

    def begin_skipping(self) -> None:
        """Steps are skipped from here on: only counted."""
        self.sampled_out = self.in_module = True
        self.measuring = False

    def end_skipping(self) -> None:
        """A step begins that is measured again."""
        self.sampled_out = False
        self.in_module = self.over
        self.phase, self.named, self.events = NO_PHASE, False, 0
        self.sums = EMPTY.copy()
        self.transfers = {}
        self.updating = []

    # -- phases -------------------------------------------------------------------------------

    def enter(self, phase: int) -> int:
        """Enters a phase. Returns: what to pass to `leave`, `KEPT` if nothing changes."""
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
        """Leaves a phase. Returns: the time at which it did.

        Args:
            before: What `enter` returned, unless that was `KEPT`.
        """
        now = self._book()
        self.phase = before
        if before != NO_PHASE:
            self.phase_start = self._phase_begins(before) if self.measuring else now
        return now

    def _book(self) -> int:
        """Adds the time of the current phase. Returns: the current time."""
        phase, sums = self.phase, self.sums
        if phase == NO_PHASE:  # steps were skipped in between
            return self.wall()
        now = self._phase_ends(phase) if self.measuring else self.wall()
        sums[phase] += now - self.phase_start
        sums[SEEN] |= 1 << phase
        return now

    def forget_phase(self) -> None:
        """Resets the phase after an exception left the lane in it."""
        self.phase, self.named = NO_PHASE, False

    def _phase_begins(self, phase: int) -> int:
        return self.wall()

    def _phase_ends(self, phase: int) -> int:
        return self.wall()

    # -- waits --------------------------------------------------------------------------------

    def wait_begins(self) -> None:
        """The thread starts to wait for another thread of the trainer."""
        self._waits += 1
        if self._waits == 1:
            if self.measuring:
                self.sample(self.blocked_as())
            self._wait_ns = self.wall()

    def wait_ends(self) -> None:
        """The wait ended."""
        self._waits -= 1
        if not self._waits:
            if self.measuring:
                self.sample(IDLE)
            if self.phase == OPTIMIZER:  # it waits for updates on other devices
                self.phase_start += self.wall() - self._wait_ns

    def blocked_as(self) -> int:
        """What time blocked at this point counts as."""
        return self.between

    def suspend(self) -> None:
        """The thread switches to another lane: this one's device is idle meanwhile."""
        if self.measuring:
            self.sample(self.blocked_as())
        self._left_ns = self.wall()

    def resume(self) -> None:
        """The thread is back; the phase it left was paused meanwhile."""
        self.phase_start += self.wall() - self._left_ns
        if self.measuring and self._read is not None:
            now = self._read()
            away = now[0] - self._mark[0]
            self.sums[BUSY] += away
            self.sums[IDLE] += away
            self._mark = now

    def sample(self, blocked_as: int) -> int:
        """Attributes the time since the last sample. Returns: the current time."""
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
        """Adds one copy between devices."""
        self.sums[MOVES] += 1
        self.sums[MOVED] += duration_ns
        total = self.transfers.get((kind, src, dst))
        if total is None:
            self.transfers[kind, src, dst] = [nbytes, duration_ns]
        else:
            total[0] += nbytes
            total[1] += duration_ns


class IssueCounter(Protocol):
    """Counts the collectives issued by any thread of this process; the count never decreases."""

    issued: int


class MainLane(Lane):
    """A training thread's lane: the thread always belongs to it, so its time is booked by phase.

    Attributes:
        thread: That thread's `threading.get_ident()`.
        on_device: Times its phases on the device, None if the host's times suffice.
    """

    __slots__ = ("_collectives", "_issued_before", "on_device", "thread")

    between = IDLE

    def __init__(
        self, clocks: Clocks, collectives: IssueCounter, steps: Events, device: int = 0
    ) -> None:
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
        if self.on_device is not None:  # its stream may be idle meanwhile, unobserved
            self.on_device.interrupt()

    def _phase_begins(self, phase: int) -> int:
        # Waiting for data is idle time, like the time before it: no sample is needed.
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
