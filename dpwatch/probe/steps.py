"""Steps: where one ends, what is recorded of it, and which models and optimizers take part.

A step ends at the end of an outermost `optimizer.step()` that followed at least one backward since
the last step end. So

- gradient accumulation is one step: its backwards add up;
- optimizers stepping one after another behind one backward make one step, ending with the first of
  them; the others' time is the beginning of the next step, so that in a steady run each step holds
  each optimizer once;
- a GAN's two backward-and-step pairs are two steps;
- a step that a GradScaler skips doesn't end, it runs on into the next.

A script that knows better says `dpwatch.step()` where its steps end; from the first time on, only
that ends them.

Of steps shorter than 25 ms most are only counted (see `LOOK_NS`); those that are told of are told
of whole, so medians, rates and shares stay true.

Forward and data waits count only while gradients are enabled: evaluation falls into `other`.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from dpwatch.probe import sampling
from dpwatch.probe.abandoned import Abandoned
from dpwatch.probe.cpu import Clocks
from dpwatch.probe.lanes import BACKWARD, DATA, FORWARD, OPTIMIZER, Lane, MainLane, here
from dpwatch.probe.seams import CollectivesLike, LedgerLike, NoLedger, RecordSink
from dpwatch.probe.subjects import Live, device_of, elements_of, scalar_of, strategy_of
from dpwatch.probe.sums import (
    EMPTY,
    IDLE,
    SAMPLES,
    SEEN,
    UNKNOWN_PHASES,
    Circumstances,
    step_record,
)
from dpwatch.wire.messages import DeviceInfo, Transfer

MEASURED_STEP_NS = 50_000_000
"""Thread times are read in every step that follows one as long as this, and in one of ten shorter
ones: they cost up to 100 µs a step."""

LOOK_NS = 250_000_000
"""Of short steps two in a stretch of at most so long are looked at, eight to sixteen a second, and
the others counted: on each, the hooks would cost from half a percent to several. The stretch is 10,
20, 40, … steps; `sampling` says which two. Of longer ones every loss is read, which takes 40 µs; of
these that of the second of a pair."""

MOST_DOUBLED = 8
"""How often a stretch is doubled at most: to 2,560 steps."""

TURN = 4
"""A step that would make the stretch last so many times as long is unusual, and the next is looked
at: something may have changed. …"""

ALERT_STEPS = 20
ALERT_NS = 1_000_000_000
"""… Once in so long that many are, so that of what comes back every few steps it is seen why."""

FIRST_AWAKE = 10
"""The first steps are all looked at: they are unlike the rest, and short runs have no others."""

MOST_SCALED = 256
"""Scaled losses known of a step; those of more are unknown."""


class Steps:
    """Follows the training thread's steps. The hooks call it, on threads that have a lane.

    Attributes:
        step: The step under way, from 0.
        ledger: Told of step boundaries; put in its place when the devices are known.
        lanes: By device; 0 is the training thread's.
        devices: What this process drives. Learned from the model when nobody said.
        stop: Called at the next step's end, on the training thread.
        abandoned: Passes that raised and that the script went on after.
        own_threads: Python threads that belong to the probe.
        params: Elements of the parameters of all models seen, None before the first.
        param_bytes: Their bytes.
        wrapper: The strategy that a model's outermost class stands for, "" as long as none does.
    """

    def __init__(
        self,
        record: RecordSink,
        collectives: CollectivesLike,
        *,
        devices: Sequence[DeviceInfo],
        clocks: Clocks,
        on_devices: Callable[[Sequence[DeviceInfo]], None],
    ) -> None:
        self.step = 0
        self.devices = devices
        self.ledger: LedgerLike = NoLedger()
        self.own_threads = 0
        self.params: int | None = None
        self.param_bytes: int | None = None
        self.wrapper = ""
        self.main = MainLane(clocks, collectives)
        self.main.clock = clocks.of_this_thread()
        self.lanes: dict[int, Lane] = {0: self.main}
        self._record = record
        self._collectives = collectives
        self._clocks = clocks
        self.stop: Callable[[], None] | None = None
        self.abandoned = Abandoned()
        self._blind = collectives.capture == "none"
        self._on_devices = on_devices
        self._trained: dict[int, bool] = {}
        self._models: Live[Module] = Live()
        self._optimizers: Live[Optimizer] = Live()
        self._stepping = 0
        self._start_ns: int | None = None
        self._issued_before = collectives.issued
        self._nested = 0
        self._recount = False
        self._reads_loss = True
        self._dozed_backwards = 0
        self._told_ends = False
        self._pair = -1
        self._long_ns = 0
        self._alert_ns = -ALERT_NS
        self._awake_until = FIRST_AWAKE
        self._begin()

    def _begin(self) -> None:
        self._backwards = 0
        self._batch_due = True
        self._loss: float | None = None
        self._scaled: list[tuple[weakref.ref[torch.Tensor], float | None]] = []
        self._said_loss = False
        self._torn = False
        self._said_samples = False

    # -- what the hooks tell ------------------------------------------------------------------

    def module_begins(
        self, lane: Lane, module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """An outermost module is called. Returns: whether this is a forward that counts."""
        if not torch.is_grad_enabled():
            return False
        if lane is self.main:
            self.abandoned.goes_on()
            if self._start_ns is None:
                self._first_event()
            trained = self._trained.get(id(module))
            if trained is None:
                trained = self._meet(module)
            if self._batch_due and trained:
                self._batch_due = False
                self._count_batch(args, kwargs)
            if not self._nested:
                self.ledger.before_forward()
        lane.enter(FORWARD)
        return True

    def pass_raised(self, lane: Lane) -> None:
        """A forward or backward has raised, and does so still."""
        if lane is self.main and self.wrapper:
            self.abandoned.raised(self.step, sys.exc_info()[1])

    def data_begins(self, lane: Lane) -> bool:
        """A data loader is asked for a batch. Returns: whether it counts."""
        if not torch.is_grad_enabled():
            return False
        if self._start_ns is None and lane is self.main:
            self._first_event()
        lane.enter(DATA)
        return True

    def backward_begins(self, lane: Lane) -> None:
        """Backward is called."""
        if lane is self.main:
            if self._start_ns is None:
                self._first_event()
            if not self._nested:
                self.ledger.before_backward()
            self._nested += 1
        lane.enter(BACKWARD)

    def backward_ends(self, lane: Lane, root: Any, done: bool) -> None:
        """It is over, `done` unless it raised; `root` is what may be the step's loss, or None."""
        lane.exit()
        if lane is not self.main:
            return
        self._nested -= 1
        if not done:
            self.pass_raised(lane)
        if self._nested or not done:  # checkpointing calls backward inside backward
            return
        self._backwards += 1
        self._batch_due = True
        if self._reads_loss and not self._said_loss and type(root) is torch.Tensor:
            self._read_loss(root)

    def optimizer_begins(self, lane: Lane, optimizer: Optimizer) -> None:
        """An optimizer's step begins, perhaps inside another's (ZeRO wraps one)."""
        if lane is not self.main:
            lane.enter(OPTIMIZER)
            return
        if self._stepping and self._stepping > (outer := _steps_around()):
            self._stepping = outer  # one has raised, and so its end was never announced
            self._torn = True
            if not outer:
                lane.forget_phase()
        self._stepping += 1
        if id(optimizer) not in self._optimizers.refs:
            self._optimizers.add(optimizer)
        lane.enter(OPTIMIZER)

    def optimizer_ends(self, lane: Lane, optimizer: Optimizer) -> None:
        """It is over; if it was the outermost and had a backward, so is the step."""
        if lane is not self.main:
            lane.exit()
            return
        if not self._stepping:  # the probe was started in the midst of it
            return
        self._stepping -= 1
        now = lane.exit()
        if now and self._backwards and not self._told_ends:
            self._end(now)

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        """A GradScaler has scaled these: as backward's root they are so much more than the loss."""
        if not self._reads_loss or len(self._scaled) >= MOST_SCALED:
            return
        scale = getattr(scaler, "_scale", None)  # private: without it the loss is unknown
        factor = None if scale is None else scalar_of(scale)
        for each in outputs if isinstance(outputs, list | tuple) else (outputs,):
            if isinstance(each, torch.Tensor):
                self._scaled.append((weakref.ref(each), factor))

    # -- what the trainer tells ---------------------------------------------------------------

    def say_step(self) -> None:
        """The script says that its step ends here, and so that it alone says when."""
        main = self.main
        if here.lane is not main or (main.depth and not main.asleep):
            return
        first, self._told_ends = not self._told_ends, True
        if self._start_ns is None:  # nothing has begun that could end
            self._first_event()
        elif main.asleep:
            self._dozed_end()
        elif not first or not self.step or self._backwards:  # else an optimizer has just ended it
            self._end(main.sample(IDLE) if main.measuring else self._clocks.wall())

    def say_samples(self, lane: Lane, n: int) -> None:
        """The trainer's own count replaces what was read off the model's input."""
        if lane is self.main and not self._said_samples:
            self._said_samples = True
            lane.sums[SAMPLES] = -1
        lane.sums[SAMPLES] = max(lane.sums[SAMPLES], 0) + n

    def say_loss(self, value: float) -> None:
        """The trainer's own loss replaces what was read off backward's root."""
        self._said_loss = True
        self._loss = value

    def phase_begins(self, lane: Lane, phase: int) -> None:
        """The trainer names the phase itself."""
        if self._start_ns is None and lane is self.main:
            self._first_event()
        lane.enter(phase)

    # -- models -------------------------------------------------------------------------------

    def _meet(self, module: Module) -> bool:
        key = id(module)
        trained = next(module.parameters(), None) is not None
        self._trained[key] = trained
        forget = weakref.finalize(module, self._trained.pop, key, None)  # ids are used again
        forget.atexit = False
        if trained:
            self._models.add(module)
            self.wrapper = self.wrapper or strategy_of(module)
            self._recount = True  # at the step's end, when lazy ones have a shape
        return trained

    def _count_batch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._said_samples:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                rows = value.shape[0] if value.dim() else None
                if type(rows) is int:  # and no symbol of torch.export's
                    self.main.sums[SAMPLES] = max(self.main.sums[SAMPLES], 0) + rows
                return

    def _count_params(self) -> None:
        self._recount = False
        found = {id(p): p for model in self._models for p in model.parameters()}
        if not found:
            return
        self.params = sum(elements_of(p) for p in found.values())
        self.param_bytes = sum(elements_of(p) * p.element_size() for p in found.values())
        if not self.devices:
            self.devices = [device_of(next(iter(found.values())))]
            self._on_devices(self.devices)

    # -- step boundaries ----------------------------------------------------------------------

    def _first_event(self) -> None:
        self._start_ns = self._clocks.wall()
        self._adopt(measuring=True)
        self.ledger.step_begin(0)

    def _adopt(self, *, measuring: bool) -> None:
        clock = self.main.clock
        if clock is not None:
            self.main.adopt(clock, measuring=measuring)

    def _end(self, now: int) -> None:
        main, step = self.main, self.step
        start = now if self._start_ns is None else self._start_ns
        measured = self._circumstances() if main.measuring else None
        issued = self._collectives.issued
        sums, main.sums = main.sums, EMPTY.copy()
        if self._torn:
            sums[SEEN] = 0
        seen = None if self._blind else issued != self._issued_before
        record = (step_record, 0, step, start, now, sums, seen, measured, self._loss)
        queued = self._kernels_are_queued()
        if main.on_device is not None:
            main.on_device.step_ends(record)
        else:
            self._record((*record, UNKNOWN_PHASES if queued else None))
        alone = len(self.lanes) == 1 and not main.transfers
        if not alone:
            self._record_others(start, now, measured, queued=queued)
        self.ledger.step_end(step, self._optimizers, self._models)
        if self._recount:
            self._count_params()
        self.step = step = step + 1
        self._start_ns = now
        self._issued_before = issued
        self._begin()
        turn = sampling.is_second(step)
        self._reads_loss = turn or now - start > LOOK_NS // sampling.BLOCK
        wanted = turn or now - start >= MEASURED_STEP_NS
        if wanted or main.measuring:
            self._measure(wanted)
        if alone and self._dozes(step, now - start):
            main.doze()
        else:
            self.ledger.step_begin(step)
        if self.stop is not None:
            self.stop()

    # -- dozing: short steps that are only counted --------------------------------------------

    def dozed_backward(self) -> None:
        """A backward of a step that is only counted."""
        self._dozed_backwards += 1

    def dozed_optimizer(self) -> None:
        """An optimizer's step in it: as always, the first after a backward ends the step."""
        if self._dozed_backwards and not self._told_ends:
            self._dozed_end()

    def _dozed_end(self) -> None:
        self._dozed_backwards = 0
        now = self._clocks.wall()
        took_ns = now - (self._start_ns or now)
        self.step += 1
        self._start_ns = now
        if took_ns > self._long_ns:
            if now - self._alert_ns >= ALERT_NS:
                self._alert_ns, self._awake_until = now, self.step + ALERT_STEPS
            self._wake()
        elif self.step >= self._pair:
            self._wake()
        if self.stop is not None:
            self.stop()

    def _dozes(self, step: int, took_ns: int) -> bool:
        """Whether the step that begins after one of that length is only counted."""
        stretches = LOOK_NS // (sampling.BLOCK * max(1, took_ns))
        if not stretches or step < self._awake_until or step == self._pair + 1:
            return False
        doublings = min(stretches.bit_length() - 1, MOST_DOUBLED)
        self._pair = sampling.next_pair(step, doublings)
        self._long_ns = min(
            LOOK_NS // sampling.BLOCK, TURN * LOOK_NS // (sampling.BLOCK << doublings)
        )
        return step < self._pair

    def _wake(self) -> None:
        self.main.wake()
        self._issued_before = self._collectives.issued
        self._begin()
        self._reads_loss = turn = sampling.is_second(self.step)
        self._measure(turn)
        self.ledger.step_begin(self.step)

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
        # Only in the first step are there models and no devices yet.
        return any(p.is_cuda for m in self._models for p in islice(m.parameters(), 1))

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

    def _read_loss(self, root: torch.Tensor) -> None:
        """Backwards add up: what a step minimises is the sum of their roots.

        Those who accumulate gradients divide each root by how many there are.
        """
        value = scalar_of(root)
        if value is not None and self._scaled:
            scale = next((scale for ref, scale in self._scaled if ref() is root), None)
            value = value / scale if scale else None
        if value is not None:
            self._loss = value if self._loss is None else self._loss + value


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
