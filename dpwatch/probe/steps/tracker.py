"""Steps: where one ends, and what is recorded of it.

A step ends at the end of an outermost `optimizer.step()` that followed at least one backward since
the last step end. So

- gradient accumulation is one step: its backwards add up;
- optimizers stepping one after another behind one backward make one step, ending with the first of
  them; the others' time is the beginning of the next step, so that in a steady run each step holds
  each optimizer once;
- a GAN's two backward-and-step pairs are two steps;
- a step that a GradScaler skips doesn't end, it runs on into the next.

Where optimizers step inside backward, the outermost backward ends the step. Where parameters change
without an optimizer's being heard of (a compiled `optimizer.step()`, an update by hand), steps end
at the first event after the change (see `UnhookedUpdates`). A script that knows better says
`dpwatch.step()` where its steps end; from the first time on, only that ends them.

Of steps shorter than 25 ms, and of those with so many events that looking at all would cost too
much, most are only counted (see `LOOK_NS`, `EVENT_NS`); those that are told of are told of whole,
so medians, rates and shares stay true.

Forward and data waits count only while gradients are enabled: evaluation falls into `other`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from dpwatch.probe.instruments import CollectivesLike, LedgerLike, NoLedger
from dpwatch.probe.send.recorder import RecordSink
from dpwatch.probe.steps import sampling
from dpwatch.probe.steps.abandoned import Abandoned
from dpwatch.probe.steps.lanes import (
    BACKWARD,
    DATA,
    FORWARD,
    KEPT,
    MOST_EVENTS,
    NO_PHASE,
    OPTIMIZER,
    Lane,
    MainLane,
    here,
)
from dpwatch.probe.steps.losses import Batches, Relation, StepLoss, relation_to
from dpwatch.probe.steps.models import Models
from dpwatch.probe.steps.step_record import (
    EMPTY,
    IDLE,
    SAMPLES,
    SEEN,
    UNKNOWN_PHASES,
    Circumstances,
    step_record,
)
from dpwatch.probe.steps.tensors import rows_of
from dpwatch.probe.steps.thread_clock import Clocks
from dpwatch.probe.steps.updates import Watched
from dpwatch.probe.steps.without_optimizer import UnhookedUpdates
from dpwatch.wire.messages import DeviceInfo, Transfer

MEASURED_STEP_NS = 50_000_000
"""Thread times are read in every step that follows one as long as this, and in one of ten shorter
ones: they cost up to 100 µs a step."""

SHARED_STEP_NS = 10_000_000
"""The same of virtual devices that share a process: that they wait for each other is the point."""

LOOK_NS = 250_000_000
"""Of short steps two in a stretch of at most so long are looked at, eight to sixteen a second, and
the others counted: on each, the hooks would cost from half a percent to several. The stretch is 10,
20, 40, … steps; `sampling` says which two. Of longer ones every loss is read, which takes 40 µs; of
these that of the second of a pair."""

MOST_DOUBLED = 8
"""How often a stretch is doubled at most: to 2,560 steps."""

EVENT_NS = 8_000
"""What one event costs, generously: a phase entered and left, among operations that fill the
caches."""

LOSS_EVENTS = 5
"""Reading a loss costs as much as so many."""

COST_SHARE = 0.01
"""Of the time, that events may cost on average. Steps with more of them are looked at in pairs that
lie so far apart."""

FIRST_EVENTS, PAIR_EVENTS = 4_096, 65_536
"""Events of one of the first steps, and of one of a pair, before their cost is looked at: these are
seldom, and are to be seen whole."""

COSTLY_FIRST_STEPS = 2
"""Of dear steps so many first ones are looked at."""

UNUSUAL_FACTOR = 4
"""A step that would make the stretch last so many times as long is unusual, and the next is looked
at: something may have changed. …"""

ALERT_STEPS = 20
ALERT_NS = 1_000_000_000
"""… Once in so long that many are, so that of what comes back every few steps it is seen why."""

FIRST_STEPS = 10
"""The first steps are all looked at: they are unlike the rest, and short runs have no others."""

BARE_UPDATES = 3
"""So many steps of an optimizer before any backward, and they end steps by themselves: gradients
come from somewhere else."""


class Steps:
    """Follows a training thread's steps. The hooks call it, on threads that have a lane.

    Attributes:
        step: The step under way, from 0.
        tells: Where its number is written too (see `runtime.last_step`).
        backwards: Outermost backwards seen so far while steps are looked at.
        skipped_backwards: Backwards of the step under way, while it is only counted.
        notify_after: How many of them may pass before `skipped_backward` is called.
        ledger: Told of step boundaries; put in its place when the devices are known.
        lanes: By device; the first is the training thread's.
        devices: What this process drives. Learned from the model when nobody said.
        stop: Called at the next step's end, on the training thread.
        abandoned: Passes that raised and that the script went on after.
        own_threads: Python threads that belong to the probe.
        models: The models and optimizers that take part.
    """

    def __init__(
        self,
        record: RecordSink,
        collectives: CollectivesLike,
        *,
        devices: list[DeviceInfo],
        clocks: Clocks,
        on_devices: Callable[[Sequence[DeviceInfo]], None],
        device: int = 0,
    ) -> None:
        self.step = 0
        self.tells: memoryview[int] | list[int] = [0]
        self.backwards = 0
        self.notify_after = 0
        self.devices = devices
        self.ledger: LedgerLike = NoLedger()
        self.own_threads = 0
        self.models = Models()
        self._record = record
        self._collectives = collectives
        self._clocks = clocks
        self.main = MainLane(clocks, collectives, self, device)
        self.main.clock = clocks.of_this_thread()
        self.main.most_events = FIRST_EVENTS
        self.lanes: dict[int, Lane] = {device: self.main}
        self.stop: Callable[[], None] | None = None
        self.abandoned = Abandoned()
        self._blind = collectives.capture == "none"
        self._on_devices = on_devices
        self._watched = Watched()
        self._unhooked = UnhookedUpdates()
        self._loss = StepLoss()
        self._batches = Batches()
        self._start_ns: int | None = None
        self._issued_before = collectives.issued
        self._bare_updates = 0
        self._keeps = False
        self._reads_loss = True
        self._explicit_ends = False
        self._pair = -1
        self._long_ns = 0
        self._alert_ns = -ALERT_NS
        self._measure_all_until = FIRST_STEPS
        self._reset_step()

    def move(self) -> MainLane:
        """The calling thread is the training thread from now on. Returns: its lane."""
        before = self.main
        before.end()
        self.main = lane = MainLane(self._clocks, self._collectives, self, before.device)
        lane.on_device = before.on_device
        lane.clock = self._clocks.of_this_thread()
        self.lanes[before.device] = lane
        self._start_ns = None
        self._reset_step()
        if before.clock is not None:
            before.clock.close()
        return lane

    def _reset_step(self) -> None:
        self._in_step = self.skipped_backwards = 0
        self._start_unseen = False
        self._relation = Relation.MORE
        self._phases_torn = self._updated = self._had_changed = False
        self._forward_due = True
        self._said_samples = False
        self._loss.begin()
        self._batches.begin()

    # -- what the hooks tell ------------------------------------------------------------------

    def module_begins(
        self, lane: Lane, module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> int:
        """An outermost module is called. Returns: for `Lane.leave`, `KEPT` if it does not count."""
        if not torch.is_grad_enabled():
            return KEPT
        if lane is self.main:
            self.abandoned.script_continued()
            self._on_event()
            if lane.events >= lane.most_events and self._is_over_budget(lane):
                return KEPT
            if self.models.is_trained(module):
                self._count_batch(args, kwargs)
            if self._forward_due:
                self._forward_due = False
                self.ledger.before_forward()
        return lane.enter(FORWARD)

    def pass_raised(self, lane: Lane) -> None:
        """A forward or backward has raised, and does so still."""
        if lane is self.main and self.models.wrapper:
            self.abandoned.raised(self.step, sys.exc_info()[1])

    def data_begins(self, lane: Lane) -> int:
        """A data loader is asked for a batch. Returns: as `module_begins`."""
        if not torch.is_grad_enabled():
            return KEPT
        if lane is self.main:
            self._on_event()
            if lane.events >= lane.most_events and self._is_over_budget(lane):
                return KEPT
        return lane.enter(DATA)

    def backward_begins(self, lane: Lane) -> int:
        """Backward, or `torch.autograd.grad`, is called. Returns: as `module_begins`."""
        if lane is not self.main:
            return lane.enter(BACKWARD)
        if lane.phase == BACKWARD and torch._C._current_graph_task_id() == -1:
            lane.forget_phase()  # an interrupt has left it behind
        self._on_event()
        before = lane.enter(BACKWARD)
        if before != KEPT:  # checkpointing calls backward inside backward
            self._had_changed = self._watched.was_updated()
            self._relation = relation_to(self._watched) if self._in_step else Relation.MORE
            self.ledger.before_backward()
        return before

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
        """It is over, `done` unless it raised; for the rest see `StepLoss.backward`."""
        if before == KEPT:
            return
        now = lane.leave(before)
        if not done:
            self.pass_raised(lane)
        if lane is not self.main or not done:
            return
        self.backwards += 1
        self._in_step += 1
        self._forward_due = True
        self._keeps = self._keeps or keeps
        if self._reads_loss:
            lane.events += LOSS_EVENTS
            self._loss.backward(roots, gradients, self._relation, keeps=keeps)
        if keeps or not self._keeps:
            self._take_batch()
        changed_inside = not self._had_changed and self._watched.was_updated()
        self._watched.mark(self.models.places())
        if self._explicit_ends:
            return
        if self._updated:  # the optimizer has stepped inside
            self._end(now)
        elif changed_inside and (ended := self._unhooked.ended(True, self._in_step)):
            self._end_without_optimizer(ended)
        elif lane.events >= lane.most_events:
            self._is_over_budget(lane)

    def optimizer_begins(self, lane: Lane, optimizer: Optimizer) -> None:
        """An optimizer's step begins, perhaps inside another's (ZeRO wraps one)."""
        opened = lane.updating
        if lane is self.main:
            if opened and len(opened) > (outer := _steps_around()):
                del opened[outer:]  # one has raised, and so its end was never announced
                self._phases_torn = True
                if not outer:
                    lane.forget_phase()
            self._ensure_started()
            self.models.add_optimizer(optimizer)
        opened.append(lane.enter(OPTIMIZER))

    def optimizer_ends(self, lane: Lane, optimizer: Optimizer) -> None:
        """It is over; if it was the outermost and had a backward, so is the step."""
        opened = lane.updating
        if not opened:  # the probe was started in the midst of it
            return
        before = opened.pop()
        now = lane.leave(before) if before != KEPT else self._clocks.wall()
        if lane is not self.main or opened:
            return
        if before == BACKWARD:
            self._updated = True
        elif self._has_gradients() and not self._explicit_ends:
            self._unhooked.optimizer_ended(self._in_step)
            self._end(now)

    def _has_gradients(self) -> bool:
        """Whether there was a backward in this step, or never one and gradients come otherwise."""
        if self._in_step:
            return True
        if self.backwards or self.skipped_backwards:
            return False
        self._bare_updates += 1
        return self._bare_updates > BARE_UPDATES

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        """A GradScaler has scaled these losses."""
        if self._reads_loss:
            self._loss.scaled(scaler, outputs)

    # -- what the trainer tells ---------------------------------------------------------------

    def end_step(self) -> None:
        """The script says that its step ends here, and so that it alone says when."""
        main = self.main
        if here.lane is not main or (main.phase != NO_PHASE and not main.sampled_out):
            return
        first, self._explicit_ends = not self._explicit_ends, True
        if self._start_ns is None:  # nothing has begun that could end
            self._first_event()
        elif main.sampled_out:
            self._end_skipped()
        elif not first or not self.step or self._in_step:  # else an optimizer has just ended it
            self._end(main.sample(IDLE) if main.measuring else self._clocks.wall())

    def set_samples(self, lane: Lane, n: int) -> None:
        """The trainer's own count replaces what was read off the model's input."""
        if lane is self.main and not self._said_samples:
            self._said_samples = True
            lane.sums[SAMPLES] = -1
        lane.sums[SAMPLES] = max(lane.sums[SAMPLES], 0) + n

    def set_loss(self, value: float) -> None:
        """The trainer's own loss replaces what was read off backward's root."""
        self._loss.set(value)

    def phase_begins(self, lane: Lane, phase: int) -> int:
        """The trainer names the phase itself. Returns: as `module_begins`."""
        if lane is self.main:
            self._ensure_started()
        return lane.enter(phase)

    def blindness(self) -> str:
        """Why no step may have been seen, in a line; from any thread."""
        if self.backwards:
            return (
                f"backward has run ({self.backwards} times seen), but no optimizer of torch.optim "
                "has stepped since, and no parameter has changed in place"
            )
        if any(True for _ in self.models.all):
            return "models were called with gradients on, but no backward has run"
        if self._collectives.issued:
            return "collectives were issued, but no model was called with gradients on"
        return "no model of torch.nn was called with gradients on, and no backward has run"

    # -- samples ------------------------------------------------------------------------------

    def _count_batch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._said_samples:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                rows = rows_of(value)
                if rows is not None:
                    self._batches.called(rows)
                return

    def _take_batch(self) -> None:
        if self._said_samples or self._relation is not Relation.MORE:
            return  # a trial of the same batch is no other one
        rows = self._batches.backward()
        if rows is not None:
            sums = self.main.sums
            sums[SAMPLES] = max(sums[SAMPLES], 0) + rows

    # -- step boundaries ----------------------------------------------------------------------

    def _on_event(self) -> None:
        """An event on the training thread, before it counts."""
        if self._in_step and not self.main.updating and not self._explicit_ends:
            ended = self._unhooked.ended(self._watched.was_updated(), self._in_step)
            if ended:
                self._end_without_optimizer(ended)
        self._ensure_started()

    def _end_without_optimizer(self, steps: int) -> None:
        """Parameters have changed without an optimizer's step: so many steps have ended."""
        if steps > 1:  # in the dark, and so nothing is known of each
            self.step += steps - 1
            self._start_ns = None
        self._end(self._clocks.wall())

    def _is_over_budget(self, lane: Lane) -> bool:
        """Whether so many events in one step cost too much: then it goes on uncounted."""
        took = self._clocks.wall() - (self._start_ns or 0)
        if not _is_costly(took, lane.events) or not self._is_single_lane():
            lane.most_events = 2 * lane.events
            return False
        self.skipped_backwards = self._in_step
        self._skip_until_pair(self.step + 1, took, lane.events)
        return True

    def _ensure_started(self) -> None:
        if self._start_ns is None and not self._start_unseen:
            self._first_event()

    def _first_event(self) -> None:
        self._start_ns = self._clocks.wall()
        self._adopt(measuring=True)
        self.ledger.step_begin(self.step)

    def _adopt(self, *, measuring: bool) -> None:
        clock = self.main.clock
        if clock is not None:
            self.main.adopt(clock, measuring=measuring)

    def _is_single_lane(self) -> bool:
        return len(self.lanes) == 1 and not self.main.transfers

    def _end(self, now: int) -> None:
        main, step, start = self.main, self.step, self._start_ns
        took = 0 if start is None else now - start
        alone = self._is_single_lane()
        left_behind = main.in_module or (main.phase != NO_PHASE and not main.named)
        if left_behind and not _inside_hooks():  # by an interrupt in the probe's own code
            main.forget_phase()
            main.in_module = False
        self._record_step(now, alone=alone)
        self.ledger.step_end(step, self.models.optimizers, self.models.all)
        if self.models.count():
            self._learn_device()
        events, main.events = main.events, 0
        self.step = self.tells[0] = step = step + 1
        self._start_ns = now
        self._issued_before = self._collectives.issued
        self._reset_step()
        turn = sampling.is_second(step)
        self._reads_loss = turn or took > LOOK_NS // sampling.BLOCK
        wanted = turn or took >= self._long_step_ns()
        if wanted or main.measuring:
            self._measure(wanted)
        main.most_events = FIRST_EVENTS if step < FIRST_STEPS else MOST_EVENTS
        if not (alone and start is not None and self._starts_skipping(step, took, events)):
            if step - self._pair in (0, 1):
                main.most_events = PAIR_EVENTS
            self.ledger.step_begin(step)
        if self.stop is not None:
            self.stop()

    def _long_step_ns(self) -> int:
        """From which length on the thread times of each step are read."""
        shares = len(self.devices) > 1 and self.devices[0].kind == "virtual"
        return SHARED_STEP_NS if shares else MEASURED_STEP_NS

    def _record_step(self, now: int, *, alone: bool) -> None:
        main, start = self.main, self._start_ns
        measured = self._circumstances() if main.measuring else None
        sums, main.sums = main.sums, EMPTY.copy()
        if start is None:  # nobody saw it begin
            return
        if self._phases_torn:
            sums[SEEN] = 0
        seen = None if self._blind else self._collectives.issued != self._issued_before
        record = (step_record, main.device, self.step, start, now, sums, seen, measured,
                  self._loss.value)  # fmt: skip
        queued = self._kernels_are_queued()
        if main.on_device is not None:
            main.on_device.step_ends(record)
        else:
            self._record((*record, UNKNOWN_PHASES if queued else None))
        if not alone:
            self._record_others(start, now, measured, queued=queued)

    def _learn_device(self) -> None:
        device = None if self.devices else self.models.first_device()
        if device is not None:
            self.devices.append(device)
            self._on_devices(self.devices)

    # -- skipped steps, which are only counted ------------------------------------------------

    def skipped_backward(self) -> None:
        """A backward of a skipped step has ended; called once `notify_after` is reached."""
        if self._updated:
            self._updated = False
            self._end_skipped()
        elif self._unhooked.engaged:
            changed = self._watched.was_updated()
            self._watched.mark(self.models.places())
            if changed and self.skipped_backwards > 1:
                self._end_skipped()
                self._resume_unseen(1)
        else:
            backwards = self.skipped_backwards
            self._end_skipping()  # no optimizer's step for long: steps may end otherwise now
            self._resume_unseen(backwards)

    def conclude(self) -> None:
        """Nothing will follow: ends the step that only what follows would have shown to be over."""
        if not self._unhooked.engaged or not self._watched.was_updated():
            return
        if self.main.sampled_out:
            self.step += bool(self.skipped_backwards)
            self.tells[0] = self.step
        else:
            self._on_event()

    def _resume_unseen(self, backwards: int) -> None:
        """A step is under way whose beginning nobody saw, and so many backwards of it are over."""
        self._start_ns = None
        self._start_unseen = True
        self.skipped_backwards = self._in_step = backwards

    def skipped_optimizer_begins(self, lane: Lane) -> None:
        """An optimizer's step in it begins, perhaps inside another's."""
        opened = lane.updating
        if opened:
            del opened[_steps_around() :]
        opened.append(KEPT)

    def skipped_optimizer_ends(self, lane: Lane) -> None:
        """It is over: as always, the first outermost one after a backward ends the step."""
        opened = lane.updating
        if opened:
            opened.pop()
        if opened or self._explicit_ends:
            return
        if torch._C._current_graph_task_id() != -1:
            self._updated = True
            self.notify_after = 0
        elif self.skipped_backwards:
            self._end_skipped()

    def _end_skipped(self) -> None:
        self._unhooked.saw_step(self.skipped_backwards)
        self.skipped_backwards = 0
        now = self._clocks.wall()
        took_ns = now - (self._start_ns or now)
        self.step += 1
        self.tells[0] = self.step
        self._start_ns = now
        self._set_notify_after()
        if took_ns > self._long_ns:
            if now - self._alert_ns >= ALERT_NS:
                self._alert_ns, self._measure_all_until = now, self.step + ALERT_STEPS
            self._end_skipping()
        elif self.step >= self._pair:
            self._end_skipping()
        if self.stop is not None:
            self.stop()

    def _starts_skipping(self, step: int, took_ns: int, events: int) -> bool:
        """Whether the step that begins after one like that is only counted."""
        short = took_ns <= LOOK_NS // sampling.BLOCK
        dear = _is_costly(took_ns, events) and (not short or events > MOST_EVENTS)
        if not (short or dear) or step == self._pair + 1:
            return False
        return step >= (
            COSTLY_FIRST_STEPS if dear else self._measure_all_until
        ) and self._skip_until_pair(step, took_ns, events)

    def _skip_until_pair(self, step: int, took_ns: int, events: int) -> bool:
        """Counts steps only, up to the next pair. Returns: whether it does not begin at `step`."""
        took_ns = max(1, took_ns)
        apart = 2 * events * EVENT_NS / (COST_SHARE * took_ns * sampling.BLOCK)
        stretches = LOOK_NS // (sampling.BLOCK * took_ns)
        doublings = min(max(int(apart).bit_length(), stretches.bit_length() - 1), MOST_DOUBLED)
        if step > self.step:
            self._long_ns = sys.maxsize
        elif stretches:
            stretch_ns = LOOK_NS // (sampling.BLOCK << doublings)
            self._long_ns = min(LOOK_NS // sampling.BLOCK, UNUSUAL_FACTOR * stretch_ns)
        else:
            self._long_ns = UNUSUAL_FACTOR * took_ns
        self._pair = sampling.next_pair(step, doublings)
        if step >= self._pair:
            return False
        self.main.begin_skipping()
        self._set_notify_after()
        return True

    def _set_notify_after(self) -> None:
        """From which backward on `skipped_backward` is to be called in the step that begins."""
        self.notify_after = 0 if self._unhooked.engaged else self._unhooked.patience + 1

    def _end_skipping(self) -> None:
        self.main.end_skipping()
        self.main.most_events = PAIR_EVENTS
        self._issued_before = self._collectives.issued
        self._reset_step()
        self._reads_loss = turn = sampling.is_second(self.step)
        self._measure(turn)
        self.ledger.step_begin(self.step)

    # -- what a step's record says ------------------------------------------------------------

    def _record_others(
        self, start: int, now: int, measured: Circumstances | None, *, queued: bool
    ) -> None:
        """The worker lanes' steps, and all lanes' copies."""
        for lane in list(self.lanes.values()):
            if lane is not self.main:
                sums, lane.sums = lane.sums, EMPTY.copy()
                apart = measured and measured._replace(always=False)
                if lane.clock is None or not lane.clock.knows_runqueue:
                    apart = None
                on_device = UNKNOWN_PHASES if queued else None
                self._record(
                    (step_record, lane.device, self.step, start, now, sums, False, apart, None,
                     on_device)
                )  # fmt: skip
            transfers, lane.transfers = lane.transfers, {}
            for (kind, src, dst), (nbytes, duration_ns) in transfers.items():
                self._record((Transfer, self.step, kind, src, dst, nbytes, duration_ns))

    def _kernels_are_queued(self) -> bool:
        """Whether the lanes' own times say nothing of how long phases take."""
        if self.devices:
            return self.devices[0].kind == "cuda"
        return self.models.is_on_cuda()  # only in the first step are there models and no devices

    def _circumstances(self) -> Circumstances | None:
        clock = self.main.clock
        if clock is None or not clock.knows_runqueue:
            return None
        accelerator = bool(self.devices) and self.devices[0].kind == "cuda"
        return Circumstances(
            always=True,
            others=threading.active_count() - self.own_threads > 1,
            helpers=accelerator or torch.get_num_threads() > 1,
            accelerator=accelerator,
        )

    def _measure(self, wanted: bool) -> None:
        if wanted and not self.main.measuring:
            self._adopt(measuring=True)
        self.main.measuring = wanted


def _is_costly(took_ns: int, events: int) -> bool:
    """Whether looking at all such steps would cost more than it may."""
    return events * EVENT_NS > COST_SHARE * took_ns


hook_codes: set[CodeType] = set()
"""Code of the hooks that hold a phase open while they are on the stack."""


def _inside_hooks() -> bool:
    """Whether one of the hooks is on this thread's stack, and so its phase is still to end."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in hook_codes:
            return True
        frame = frame.f_back
    return False


def _steps_around() -> int:
    """How many optimizers' steps the one that is just beginning lies in (it is one frame of them).

    ZeRO's optimizer steps an inner one, and a subclass that calls `super().step()` is announced
    twice, so neither depth nor the same optimizer again tells that an earlier step raised.
    """
    frame: FrameType | None = sys._getframe(3)  # torch's wrapper, by way of our hook
    code = None if frame is None else frame.f_code
    count = -1
    while frame is not None:
        count += frame.f_code is code
        frame = frame.f_back
    return count
