"""Steps: where they end, and what is recorded of each.

A step ends with an outermost `optimizer.step()` that follows at least one backward since the
previous step's end. So

- gradient accumulation is one step with several backwards;
- several optimizers stepping after one backward make one step, which ends with the first of them;
  the others' time counts to the next step, so that in steady state each step contains each
  optimizer once;
- a GAN's two backward-and-step pairs are two steps;
- a step that a GradScaler skips does not end; it continues into the next.

If optimizers step inside backward, the outermost backward ends the step. If parameters change
without an observed optimizer step (a compiled `optimizer.step()`, an update by hand), steps end at
the first event after the change (see `UnhookedUpdates`). A script can call `dpwatch.step()` where
its steps end; from the first call on, only that ends them.

Most steps shorter than 25 ms, and most steps with so many events that measuring each would cost too
much, are skipped: only counted (see `SAMPLING_NS`, `EVENT_COST_NS`). Recorded steps are recorded
completely, so medians, rates and shares stay correct.

Forward and data waits count only while gradients are enabled: evaluation is `other`.
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
from dpwatch.probe.steps.updates import WatchedParameter
from dpwatch.probe.steps.without_optimizer import UnhookedUpdates
from dpwatch.wire.messages import DeviceInfo, Transfer

MEASURED_STEP_NS = 50_000_000
"""Thread times are read in every step that follows one at least this long, and in one of ten
shorter ones: reading them costs up to 100 µs a step."""

SHARED_STEP_NS = 10_000_000
"""The same for virtual devices that share a process, where waiting for each other matters most."""

SAMPLING_NS = 250_000_000
"""Of short steps, two in an interval of at most this length are measured, 8–16 per second, and the
others skipped: hooks in each would cost from half a percent to several. The interval is 10, 20, 40,
… steps; `sampling` chooses which two. Of longer steps every loss is read, which takes 40 µs; of
short ones only that of the second of a pair."""

MOST_DOUBLINGS = 8
"""Limit of doublings of that interval: 2,560 steps."""

EVENT_COST_NS = 8_000
"""Upper estimate of the cost of one event: entering and leaving a phase with cold caches."""

LOSS_EVENTS = 5
"""Cost of reading a loss, in events."""

COST_SHARE = 0.01
"""Share of the time that events may cost on average. Steps with more of them are measured in pairs
at a correspondingly longer interval."""

FIRST_EVENTS, PAIR_EVENTS = 4_096, 65_536
"""Events before the cost is checked, in one of the first steps and in one of a pair: these are few,
and should be measured completely."""

COSTLY_FIRST_STEPS = 2
"""Number of first steps that are measured even if they are costly."""

UNUSUAL_FACTOR = 4
"""A step that takes this many times as long as the interval allows is unusual: the next one is
measured, since something may have changed. …"""

ALERT_STEPS = 20
ALERT_NS = 1_000_000_000
"""… At most once per `ALERT_NS`, the next `ALERT_STEPS` are, so that the cause of recurring slow
steps is seen."""

FIRST_STEPS = 10
"""The first steps are all measured: they differ from later ones, and short runs have no others."""

BARE_UPDATES = 3
"""After this many optimizer steps without any backward, each of them ends a step: gradients come
from somewhere else."""


class Steps:
    """Tracks a training thread's steps. Called by the hooks, on threads that have a lane.

    Attributes:
        step: The current step, from 0.
        step_cell: Where its number is also written (see `runtime.last_step`).
        backwards: Outermost backwards seen so far in measured steps.
        skipped_backwards: Backwards so far in the current step, if it is skipped.
        notify_after: From this number of them on, `skipped_backward` is called.
        ledger: Notified of step boundaries; replaced once the devices are known.
        lanes: By device; the first is the training thread's.
        devices: The devices this process drives; taken from the model if not given.
        stop: Called at the end of the next step, on the training thread.
        abandoned: Passes that raised and after which the script went on.
        own_threads: Number of Python threads that belong to the probe.
        models: The models and optimizers in use.
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
        self.step_cell: memoryview[int] | list[int] = [0]
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
        self._watched = WatchedParameter()
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

    def move_to_current_thread(self) -> MainLane:
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

    # -- called by hooks ----------------------------------------------------------------------

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
        """A forward or backward raised an exception, which is propagating."""
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
            lane.forget_phase()  # left over from an interrupt
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
        """It ended, `done` unless it raised; for the other arguments see `StepLoss.backward`."""
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
                del opened[outer:]  # one raised, so its end was never announced
                self._phases_torn = True
                if not outer:
                    lane.forget_phase()
            self._ensure_started()
            self.models.add_optimizer(optimizer)
        opened.append(lane.enter(OPTIMIZER))

    def optimizer_ends(self, lane: Lane, optimizer: Optimizer) -> None:
        """It ended; if it was the outermost and followed a backward, so does the training step."""
        opened = lane.updating
        if not opened:  # the probe was started inside this step
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
        """Whether this step had a backward, or there never was one and gradients come otherwise."""
        if self._in_step:
            return True
        if self.backwards or self.skipped_backwards:
            return False
        self._bare_updates += 1
        return self._bare_updates > BARE_UPDATES

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        """A GradScaler scaled these losses."""
        if self._reads_loss:
            self._loss.scaled(scaler, outputs)

    # -- called by the trainer ----------------------------------------------------------------

    def end_step(self) -> None:
        """The script's step ends here; from now on only these calls end steps."""
        main = self.main
        if here.lane is not main or (main.phase != NO_PHASE and not main.sampled_out):
            return
        first, self._explicit_ends = not self._explicit_ends, True
        if self._start_ns is None:  # there is no step to end yet
            self._first_event()
        elif main.sampled_out:
            self._end_skipped()
        elif not first or not self.step or self._in_step:  # else an optimizer just ended it
            self._end(main.sample(IDLE) if main.measuring else self._clocks.wall())

    def set_samples(self, lane: Lane, n: int) -> None:
        """Counts samples as given by the trainer, instead of by the model's input."""
        if lane is self.main and not self._said_samples:
            self._said_samples = True
            lane.sums[SAMPLES] = -1
        lane.sums[SAMPLES] = max(lane.sums[SAMPLES], 0) + n

    def set_loss(self, value: float) -> None:
        """Sets the loss given by the trainer, instead of that of backward's root."""
        self._loss.set(value)

    def phase_begins(self, lane: Lane, phase: int) -> int:
        """The trainer declares the phase itself. Returns: as `module_begins`."""
        if lane is self.main:
            self._ensure_started()
        return lane.enter(phase)

    def no_step_reason(self) -> str:
        """Why no step may have been seen, in one line; from any thread."""
        if self.backwards:
            return (
                f"backward has run ({self.backwards} times), but no torch.optim optimizer has "
                "stepped since, and no parameter has changed in place"
            )
        if any(True for _ in self.models.all):
            return "models were called with gradients on, but no backward has run"
        if self._collectives.issued:
            return "collectives were issued, but no model was called with gradients on"
        return "no torch.nn model was called with gradients on, and no backward has run"

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
            return  # another trial with the same batch
        rows = self._batches.backward()
        if rows is not None:
            sums = self.main.sums
            sums[SAMPLES] = max(sums[SAMPLES], 0) + rows

    # -- step boundaries ----------------------------------------------------------------------

    def _on_event(self) -> None:
        """Called for each event on the training thread, before it counts."""
        if self._in_step and not self.main.updating and not self._explicit_ends:
            ended = self._unhooked.ended(self._watched.was_updated(), self._in_step)
            if ended:
                self._end_without_optimizer(ended)
        self._ensure_started()

    def _end_without_optimizer(self, steps: int) -> None:
        """Ends steps whose parameters changed without an observed optimizer step."""
        if steps > 1:  # unobserved, so their times are unknown
            self.step += steps - 1
            self._start_ns = None
        self._end(self._clocks.wall())

    def _is_over_budget(self, lane: Lane) -> bool:
        """Whether this step has too many events to measure: if so, the rest of it is skipped."""
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
        if left_behind and not _inside_hooks():  # an interrupt hit the probe's own code
            main.forget_phase()
            main.in_module = False
        self._record_step(now, alone=alone)
        self.ledger.step_end(step, self.models.optimizers, self.models.all)
        if self.models.count():
            self._learn_device()
        events, main.events = main.events, 0
        self.step = self.step_cell[0] = step = step + 1
        self._start_ns = now
        self._issued_before = self._collectives.issued
        self._reset_step()
        turn = sampling.is_second(step)
        self._reads_loss = turn or took > SAMPLING_NS // sampling.BLOCK
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
        """Length from which on the thread times of each step are read."""
        shares = len(self.devices) > 1 and self.devices[0].kind == "virtual"
        return SHARED_STEP_NS if shares else MEASURED_STEP_NS

    def _record_step(self, now: int, *, alone: bool) -> None:
        main, start = self.main, self._start_ns
        measured = self._circumstances() if main.measuring else None
        sums, main.sums = main.sums, EMPTY.copy()
        if start is None:  # its start was not observed
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
            self._end_skipping()  # no optimizer step for long: steps may end otherwise now
            self._resume_unseen(backwards)

    def conclude(self) -> None:
        """Ends the last step if only a following event would have shown that it was over."""
        if not self._unhooked.engaged or not self._watched.was_updated():
            return
        if self.main.sampled_out:
            self.step += bool(self.skipped_backwards)
            self.step_cell[0] = self.step
        else:
            self._on_event()

    def _resume_unseen(self, backwards: int) -> None:
        """A step is in progress whose start was not observed, with this many backwards so far."""
        self._start_ns = None
        self._start_unseen = True
        self.skipped_backwards = self._in_step = backwards

    def skipped_optimizer_begins(self, lane: Lane) -> None:
        """An optimizer's step begins in a skipped step, perhaps inside another's."""
        opened = lane.updating
        if opened:
            del opened[_steps_around() :]
        opened.append(KEPT)

    def skipped_optimizer_ends(self, lane: Lane) -> None:
        """It ended; as always, the first outermost one after a backward ends the training step."""
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
        self.step_cell[0] = self.step
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
        """Whether to skip `step`, which follows one of that duration and number of events."""
        short = took_ns <= SAMPLING_NS // sampling.BLOCK
        costly = _is_costly(took_ns, events) and (not short or events > MOST_EVENTS)
        if not (short or costly) or step == self._pair + 1:
            return False
        first = COSTLY_FIRST_STEPS if costly else self._measure_all_until
        return step >= first and self._skip_until_pair(step, took_ns, events)

    def _skip_until_pair(self, step: int, took_ns: int, events: int) -> bool:
        """Skips steps up to the next pair. Returns: False if that begins at `step`."""
        took_ns = max(1, took_ns)
        apart = 2 * events * EVENT_COST_NS / (COST_SHARE * took_ns * sampling.BLOCK)
        stretches = SAMPLING_NS // (sampling.BLOCK * took_ns)
        doublings = min(max(int(apart).bit_length(), stretches.bit_length() - 1), MOST_DOUBLINGS)
        if step > self.step:
            self._long_ns = sys.maxsize
        elif stretches:
            stretch_ns = SAMPLING_NS // (sampling.BLOCK << doublings)
            self._long_ns = min(SAMPLING_NS // sampling.BLOCK, UNUSUAL_FACTOR * stretch_ns)
        else:
            self._long_ns = UNUSUAL_FACTOR * took_ns
        self._pair = sampling.next_pair(step, doublings)
        if step >= self._pair:
            return False
        self.main.begin_skipping()
        self._set_notify_after()
        return True

    def _set_notify_after(self) -> None:
        """Sets from which backward on `skipped_backward` is called in the step that begins."""
        self.notify_after = 0 if self._unhooked.engaged else self._unhooked.patience + 1

    def _end_skipping(self) -> None:
        self.main.end_skipping()
        self.main.most_events = PAIR_EVENTS
        self._issued_before = self._collectives.issued
        self._reset_step()
        self._reads_loss = turn = sampling.is_second(self.step)
        self._measure(turn)
        self.ledger.step_begin(self.step)

    # -- a step's record ----------------------------------------------------------------------

    def _record_others(
        self, start: int, now: int, measured: Circumstances | None, *, queued: bool
    ) -> None:
        """Records the worker lanes' steps and all lanes' copies."""
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
        """Whether the host's times say nothing about how long phases take."""
        if self.devices:
            return self.devices[0].kind == "cuda"
        return self.models.is_on_cuda()  # in the first step the devices are not known yet

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
    """Whether measuring all such steps would exceed the budget."""
    return events * EVENT_COST_NS > COST_SHARE * took_ns


hook_codes: set[CodeType] = set()
"""Code objects of the hooks that keep a phase open while they are on the stack."""


def _inside_hooks() -> bool:
    """Whether one of the hooks is on this thread's stack, so that its phase will still end."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in hook_codes:
            return True
        frame = frame.f_back
    return False


def _steps_around() -> int:
    """Number of optimizer steps around the one that is just beginning (itself one of the frames).

    ZeRO's optimizer steps an inner one, and a subclass that calls `super().step()` is announced
    twice. So neither depth nor meeting the same optimizer again shows that an earlier step raised.
    """
    frame: FrameType | None = sys._getframe(3)  # torch's wrapper, by way of our hook
    code = None if frame is None else frame.f_code
    count = -1
    while frame is not None:
        count += frame.f_code is code
        frame = frame.f_back
    return count
