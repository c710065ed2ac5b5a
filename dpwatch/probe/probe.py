"""The probe: assembles hooks, lanes, instruments and sender, and removes them again."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import CodeType, ModuleType
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from dpwatch.probe import dynamo, foreign
from dpwatch.probe.collectives import flight_recorder
from dpwatch.probe.collectives.flight_recorder import Flight
from dpwatch.probe.exit_hooks import REASON_CHARS, describe, failed, one_line, uncaught
from dpwatch.probe.foreign import is_foreign, own_fault, suppress_own
from dpwatch.probe.instruments import CollectivesLike, LedgerLike, NoCollectives, NoLedger
from dpwatch.probe.memory.resident import resident
from dpwatch.probe.output import capture
from dpwatch.probe.send import identity, recorder
from dpwatch.probe.send.hub_link import HubLink
from dpwatch.probe.send.identity import Identity
from dpwatch.probe.send.publisher import Link, Publisher
from dpwatch.probe.send.recorder import Recorder
from dpwatch.probe.stack.all_threads import stacks_of, tid_of
from dpwatch.probe.stack.call_site import is_in, raised_at, root_of, where_is
from dpwatch.probe.stack.kernel_waits import NOTHING, Wait, describe_worker, wait_of
from dpwatch.probe.stack.library_calls import (
    NO_CALL,
    GroupMembership,
    LibraryCall,
    library_call_in_traceback,
    library_call_of,
    rank_given_to_init,
)
from dpwatch.probe.steps import (
    abandoned,
    cuda_events,
    lanes,
    losses,
    models,
    sampling,
    spans,
    tensors,
    tracker,
    training_threads,
    updates,
    without_optimizer,
)
from dpwatch.probe.steps.lanes import Lane, MainLane, here
from dpwatch.probe.steps.spans import LaneJob, PhaseSpan, TransferSpan, WaitSpan
from dpwatch.probe.steps.thread_clock import Clocks
from dpwatch.probe.steps.torch_hooks import Hooks
from dpwatch.probe.steps.tracker import Steps
from dpwatch.probe.steps.training_threads import Threads
from dpwatch.runtime.cgroup_limits import cores
from dpwatch.runtime.last_step import LastStep
from dpwatch.runtime.paths import host_name
from dpwatch.wire.messages import PHASES, Beat, Bye, DeviceInfo, Gpu, Hello, Output, Stacks, Step

STACK_NS = 2_000_000_000
"""After this long without progress, heartbeats include the training thread's stack."""

NO_STEP_NOTE_NS = 9_000_000_000
"""After this long without a step, the probe reports why none was seen."""

WAIT_CAUSE_NS = 1_000_000_000
"""After this long without progress, heartbeats say what the training thread waits in."""

COMPUTING_SHARE = 0.2
"""A thread that is on a core for this share of the time is making progress."""

_NOTHING = nullcontext()

_OURS = (
    abandoned, foreign, lanes, losses, models, recorder, sampling, spans, tensors, tracker,
    training_threads, updates, without_optimizer,
)  # fmt: skip
"""Modules that run on the training thread, in its hooks."""

_NAME_CHARS = 60
"""Limit of a strategy's name; hubs refuse longer ones."""


class Probe:
    """Measures this process's training and streams it; `ProbeLike` documents its methods.

    Attributes:
        task: The pool task that this process was working on, None outside of pools.
        implicit: Whether it was started by `dpwatch run` and the script has not called `watch`
            itself.
        when_idle: Called on the sender thread when the training function has returned and the
            process waits for more work.

    Args:
        strategy: `dp`, `ddp`, …, or "" if unknown.
        title: Human-readable name of the run; the script's name by default.
        devices: The devices this process drives; by default the one that holds the model.
        total_steps: Number of steps the run intends to do.
        memory: `passive` or `exact`; None uses the environment's setting.
        incarnation: Number of probes this process had before.
        clocks: Replacement clocks, for tests.
        link: Replacement link, for tests.
        before: The previous probe of this process, now closed.

    Raises:
        Exception: Whatever kept it from starting; everything has been undone then.
    """

    def __init__(
        self,
        *,
        strategy: str = "",
        title: str = "",
        devices: Sequence[DeviceInfo] | None = None,
        total_steps: int | None = None,
        memory: str | None = None,
        incarnation: int = 0,
        clocks: Clocks | None = None,
        link: Link | None = None,
        before: Probe | None = None,
    ) -> None:
        self.strategy = one_line(strategy, _NAME_CHARS)
        self.title = one_line(title)
        self.total_steps = total_steps
        self.implicit = False
        self._memory = memory
        self.when_idle: Callable[[], None] | None = None
        self._trouble: BaseException | None = None
        self._over = False
        self._raised_at = ""
        self._raised_in: LibraryCall | None = None
        self._entered = 0
        self.task = identity.task()
        self._lock = threading.Lock()
        self._clocks = clocks or Clocks()
        self._cores = cores()
        self._began_ns = time.monotonic_ns()
        self._backend_said = devices[0].kind if devices and devices[0].kind == "virtual" else ""
        self.recorder = Recorder()
        with contextlib.ExitStack() as undo:
            collectives = _collectives(self.recorder, self._step)
            undo.callback(collectives.close)
            self._collectives = collectives
            self.steps = self._steps(0, list(devices or ()))
            self._last_step = LastStep()
            undo.callback(self._last_step.close)
            self.steps.step_cell = self._last_step.cell
            self._threads = Threads(self.steps, self._steps, self._moved)
            undo.callback(self._threads.close)
            collectives.main = self.steps.main
            undo.callback(lambda: self.steps.ledger.close())
            self._start_ledger(devices or ())
            dynamo.leave_modules_alone(*_OURS)
            self._hooks = Hooks(self._threads.newcomer, self.fail)
            undo.callback(self._hooks.close)
            self._tap = capture.Tap() if capture.wanted() else None
            if self._tap is not None:
                undo.callback(self._tap.close)
            self._publisher: Publisher = Publisher(
                self.recorder,
                _Source(self),
                link or HubLink(),
                run_id=lambda me: identity.run_id(me, incarnation, self.thread),
                host=host_name(),
                trouble=self.fail,
                before=None if before is None else before._publisher,
            )
            self._publisher.start()
            self.steps.own_threads = 1
            here.lane = self.steps.main
            undo.pop_all()

    def configure(
        self,
        *,
        strategy: str,
        title: str,
        devices: Sequence[DeviceInfo] | None,
        total_steps: int | None,
        memory: str | None = None,
    ) -> None:
        """Applies the script's own settings to a probe that `dpwatch run` has started."""
        if not self.implicit or self.steps.step:
            return
        self.implicit = False
        self.strategy = one_line(strategy, _NAME_CHARS) or self.strategy
        self.title = one_line(title) or self.title
        self.total_steps = self.total_steps if total_steps is None else total_steps
        self._memory = self._memory if memory is None else memory
        if devices and not self.steps.devices:
            self._backend_said = "virtual" if devices[0].kind == "virtual" else ""
            self.steps.devices = list(devices)
            self._start_ledger(devices)

    @property
    def idle(self) -> bool:
        """Whether its training has ended and the process waits for more work."""
        return self._publisher.paused and self._publisher.task_over

    @property
    def over(self) -> bool:
        """Whether it was closed, or turned itself off."""
        return self._over

    def _start_ledger(self, devices: Sequence[DeviceInfo]) -> None:
        before = self.steps.ledger
        self.steps.ledger = _ledger(self.recorder, devices, self._memory, before)
        if devices:
            self.steps.main.on_device = cuda_events.start(self.recorder.append, devices)

    def _steps(self, device: int, devices: list[DeviceInfo] | None = None) -> Steps:
        """Creates the `Steps` of the calling thread."""
        return Steps(
            self.recorder.append,
            self._collectives,
            devices=self.steps.devices if devices is None else devices,
            clocks=self._clocks,
            on_devices=self._start_ledger,
            device=device,
        )

    def _moved(self, lane: MainLane) -> None:
        """The training thread turned out to be another one than the one that started the probe."""
        self._collectives.main = lane

    @property
    def thread(self) -> int:
        """The training thread's `threading.get_ident()`."""
        return self.steps.main.thread

    def _step(self) -> int:
        return self.steps.step

    # -- called by the trainer ----------------------------------------------------------------

    def lane(self, device: int) -> AbstractContextManager[None]:
        """See `ProbeLike`. Lane 0 stays with the thread that called `watch()`."""
        if self._over or device == 0:
            return _NOTHING
        lane = self.steps.lanes.get(device)
        if lane is None:
            fresh = Lane(device, self._clocks, self.steps)
            lane = self.steps.lanes.setdefault(device, fresh)
        return LaneJob(lane, self.steps.main, self._clocks, self.steps.ledger, self.fail)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """See `ProbeLike`; a name that is not a phase is ignored and counts as `other`."""
        lane = here.lane
        if lane is None or lane.over or name not in PHASES:
            return _NOTHING
        return PhaseSpan(lane, PHASES.index(name), self.fail)

    def transfer(self, kind: str, src: int, dst: int, nbytes: int) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        lane = here.lane
        if lane is None or lane.over:
            return _NOTHING
        return TransferSpan(lane, kind, src, dst, nbytes)

    def waiting(self) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        lane = here.lane
        if lane is None or lane.over:
            return _NOTHING
        return WaitSpan(lane)

    def owns(self, device: int) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        if self._over:
            return _NOTHING
        try:
            return self.steps.ledger.owner(device)
        except Exception as error:  # noqa: BLE001 - never into the user's code
            own_fault(error, self.fail)
            return _NOTHING

    def holds(self, device: int, *things: Module | Optimizer) -> None:
        """See `ProbeLike`."""
        if not self._over:
            self.steps.ledger.holds(device, things)

    def step(self) -> None:
        """See `dpwatch.step`."""
        lane = here.lane
        try:
            (self.steps if lane is None else lane.steps).end_step()
        except Exception as error:  # noqa: BLE001 - never into the user's code
            own_fault(error, self.fail)

    def samples(self, n: int) -> None:
        """See `ProbeLike`."""
        lane = here.lane
        if lane is not None and not lane.over:
            lane.steps.set_samples(lane, int(n))

    def loss(self, value: float) -> None:
        """See `ProbeLike`."""
        if not self._over:
            self.steps.set_loss(float(value))

    def group_joining(self) -> None:
        """The script is in `init_process_group`, so no steps can be expected yet."""
        self._began_ns = time.monotonic_ns()

    def note(self) -> str:
        """Why no step has been seen so far, "" once one has or while it is too early to tell."""
        steps = self.steps
        early = not self._over and time.monotonic_ns() - self._began_ns < NO_STEP_NOTE_NS
        return "" if steps.step or early else steps.no_step_reason()

    # -- the end ------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Turns the probe off with one line on stderr; training goes on. From any thread."""
        with self._lock:
            if self._trouble is not None or self._over:
                return
            self._trouble = error
        said = one_line(str(error) or type(error).__name__)
        with suppress_own(Exception):  # stderr may be closed
            print(f"dpwatch: not watching this run: {said}", file=sys.stderr)  # noqa: T201
        # Only the training thread may remove its hooks, so other threads set a flag for it.
        self.steps.stop = self._turn_off
        if threading.get_ident() == self.thread:
            self._turn_off()

    def _turn_off(self) -> None:
        self.close("lost", f"the probe turned itself off: {self._trouble}")

    def close_failed(self, error: BaseException, *, then: str = "") -> None:
        """Closes with the exception that ends the run."""
        self._raised_at = raised_at(error.__traceback__)
        self._raised_in = library_call_in_traceback(error.__traceback__)
        self.close("failed", describe(error), then=then)

    def close(self, state: str = "finished", reason: str = "", *, then: str = "") -> None:
        """See `ProbeLike`. `then`: what the process does next (`Bye.then`)."""
        with self._lock:
            if self._over:
                return
            self._over = True
        if state == "finished":
            self.steps.abandoned.script_continued()
        bye = Bye(state, one_line(reason, REASON_CHARS), None, then)
        with contextlib.ExitStack() as ending:  # run all of it, even if a signal handler raises
            if self.steps.main.clock is not None:
                ending.callback(self.steps.main.clock.close)
            ending.callback(self._publisher.close, bye)
            ending.callback(self._teardown)
            if threading.get_ident() == self.thread:
                ending.callback(_quietly, self.steps.conclude)

    def forked(self) -> None:
        """In a forked child: goes silent, and leaves the parent's thread and sockets alone."""
        self._over = True
        self._lock = threading.Lock()
        self.recorder.silence()
        on_device, self.steps.main.on_device = self.steps.main.on_device, None
        if on_device is not None:
            on_device.abandon()
        self._teardown()

    def _teardown(self) -> None:
        self.steps.step_cell = [0]
        self._last_step.close()
        self._threads.close()
        parts = (self._collectives, self.steps.ledger, self._hooks, self._tap)
        with contextlib.ExitStack() as ending:
            for part in parts:
                if part is not None:
                    ending.callback(_quietly, part.close)
        on_device = self.steps.main.on_device
        if on_device is not None:
            on_device.close(ask=threading.get_ident() == self.thread)
        for lane in (*self.steps.lanes.values(), *self._threads.lanes()):
            lane.end()
        if here.lane is not None and here.lane.over:
            here.lane = None

    def __enter__(self) -> Probe:
        self._entered += 1
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._entered -= 1
        if self._entered <= 0:
            if error is None or not failed(error):
                self.close()
            else:
                if self._tap is not None and not self._over:
                    self._tap.record_exception(error)  # Python prints it only after this
                self.close_failed(error)


def _quietly(work: Callable[[], None]) -> None:
    with suppress_own(Exception):
        work()


class _Source:
    """Answers the publisher's questions about the probe, on the sender thread."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._gpu = _instrument("gpu")
        self._flight: Flight | None = None
        self._mark: tuple[Any, ...] | None = None
        self._moved_ns = 0
        self._ran: tuple[int, int | None] = (0, None)
        self._groups = GroupMembership()
        self._given: Identity | None = None
        self._function: tuple[int, CodeType | None] = (0, None)
        # If training runs on the main thread, its end is the end of the process.
        self._main = (
            threading.main_thread().ident if multiprocessing.parent_process() is None else None
        )

    def identify(self) -> Identity:
        me = identity.resolve(self._probe.thread)
        if me.backend:
            return me
        # Before the process group exists, the arguments of `init_process_group` count, even if
        # that call failed.
        given = rank_given_to_init(self._probe.thread)
        if given is None:
            return self._given or me
        self._probe.group_joining()
        rank, size = given
        env_rank = "RANK" in os.environ
        if rank < 0:
            return me if env_rank else dataclasses.replace(me, known=False)
        self._given = dataclasses.replace(
            me,
            rank=rank,
            world_size=size if size > 0 else me.world_size,
            local_rank=me.local_rank if env_rank else rank,
            known=True,
        )
        return self._given

    def group(self) -> int:
        return identity.group_now()

    def has_stepped(self) -> bool:
        return self._probe.steps.step > 0

    def has_left_group(self) -> bool:
        thread = self._probe.thread
        return not identity.resolve(thread).backend and rank_given_to_init(thread) is None

    def is_idle(self) -> bool:
        thread = self._probe.thread
        if thread == self._main:
            return False
        known, function = self._function
        if known != thread or function is None:
            self._function = thread, root_of(thread)
            return False
        return not is_in(thread, function)

    def on_idle(self) -> None:
        if self._probe.when_idle is not None:
            self._probe.when_idle()

    def failure(self) -> Bye | None:
        error = uncaught()
        return None if error is None else Bye("failed", describe(error))

    def hello(self, me: Identity) -> Hello:
        probe, steps = self._probe, self._probe.steps
        return Hello(
            world_size=me.world_size,
            local_rank=me.local_rank,
            strategy=probe.strategy
            or steps.models.wrapper
            or ("single" if me.world_size == 1 else ""),
            backend=me.backend or probe._backend_said,
            devices=list(steps.devices) or [DeviceInfo("cpu", "cpu")],
            params=steps.models.params,
            param_bytes=steps.models.param_bytes,
            title=probe.title or identity.title(me),
            total_steps=probe.total_steps,
            cores=probe._cores,
            torch_version=str(torch.__version__),
            capture=probe._collectives.capture,
            tells_output=probe._tap is not None,
            note=probe.note(),
            groups=self._groups.now(),
            unseen=probe._collectives.unseen(),
            worker=identity.worker(me),
            step_fd=probe._last_step.fd,
        )

    def complete(self, step: Step) -> Step:
        return self._probe._collectives.complete(step)

    def beat(self) -> Beat:
        probe, steps = self._probe, self._probe.steps
        phase = steps.main.phase
        at, stack, theirs = where_is(probe.thread)
        mark = (at, steps.step, phase, probe._collectives.issued)
        now = time.monotonic_ns()
        if mark != self._mark or self._is_computing(now):
            self._mark, self._moved_ns = mark, now
        still_ns = now - self._moved_ns
        within, wait = self._stall_cause(still_ns)
        held, peak = resident()
        return Beat(
            step=steps.step,
            phase=PHASES[phase] if phase >= 0 else "",
            rss_bytes=held,
            where=probe._raised_at or theirs,
            still_ns=still_ns,
            positions=probe._collectives.positions(),
            issuers=probe._collectives.issuers(),
            stack=stack if still_ns >= STACK_NS else [],
            inside=within.call,
            waits_in=wait.kind,
            waits_on=wait.on,
            meeting=within.meeting,
            abandoned=steps.abandoned.count,
            abandoned_step=steps.abandoned.step,
            abandoned_why=steps.abandoned.why,
            peak_rss_bytes=peak,
        )

    def _stall_cause(self, still_ns: int) -> tuple[LibraryCall, Wait]:
        """The library call that a stalled training thread is in, and what it waits in."""
        probe = self._probe
        if probe._raised_in is not None:
            return probe._raised_in, NOTHING
        if still_ns < WAIT_CAUSE_NS:
            return NO_CALL, NOTHING
        within, wait = library_call_of(probe.thread), wait_of(tid_of(probe.thread))
        if within.worker is not None:
            wait = wait._replace(on=describe_worker(*within.worker))
        return within, wait

    def _is_computing(self, now: int) -> bool:
        """Whether the training thread has been on a core since the last heartbeat.

        A tight loop may be sampled at the same line each time. With an accelerator this says
        nothing, since a thread that waits for the accelerator may spin.
        """
        clock, devices = self._probe.steps.main.clock, self._probe.steps.devices
        ran = None if clock is None else clock.ran_ns()
        before, self._ran = self._ran, (now, ran)
        if ran is None or before[1] is None or any(d.kind == "cuda" for d in devices):
            return False
        return ran - before[1] >= COMPUTING_SHARE * (now - before[0])

    def stacks(self, asked: int) -> Stacks | None:
        try:
            return stacks_of(self._probe.thread, asked)
        except Exception:  # noqa: BLE001 - no answer is better than no probe
            return None

    def output(self, *, last: bool = False) -> list[Output]:
        tap = self._probe._tap
        return [] if tap is None else tap.drain(last=last)

    def gpus(self) -> list[Gpu]:
        if self._gpu is None:
            return []
        try:
            found: list[Gpu] = self._gpu.poll(self._probe.steps.devices)
        except Exception:  # noqa: BLE001 - a driver's trouble is not the run's
            self._gpu = None
            return []
        return found

    def read_durations(self, now_ns: int) -> None:
        probe = self._probe
        calls = probe._collectives.calls
        if calls is None:
            return
        if self._flight is None:
            ordinal = _cuda_ordinal(probe.steps.devices)
            if ordinal is None or not calls.returned:  # nothing on CUDA yet
                return
            self._flight = flight_recorder.start(calls, probe.recorder.append, ordinal, now_ns)
        if self._flight is not None:
            self._flight.poll(now_ns)
        if self._flight is None or self._flight.note:
            probe._collectives.calls = None


def _cuda_ordinal(devices: Sequence[DeviceInfo]) -> int | None:
    """Index of the first CUDA device, None without one."""
    numbers = (device.name.partition(":")[2] for device in devices if device.kind == "cuda")
    number = next(numbers, "")
    return int(number) if number.isdecimal() else None


def _instrument(name: str) -> ModuleType | None:
    """An instrument's module, None if it cannot be imported: the probe goes on without it."""
    import importlib

    try:
        return importlib.import_module(f"dpwatch.probe.{name}")
    except Exception:  # noqa: BLE001
        return None


def _ledger(
    recorder: Recorder, devices: Sequence[DeviceInfo], memory: str | None, before: LedgerLike
) -> LedgerLike:
    module: Any = _instrument("memory.ledger")
    try:
        chosen = module.choice(memory) if devices else ""
        started: LedgerLike = module.start(recorder.append, devices, chosen, before)
    except Exception as error:
        if is_foreign(error):
            raise
        return NoLedger()
    return started


def _collectives(recorder: Recorder, step_of: Any) -> CollectivesLike:
    module: Any = _instrument("collectives.observer")
    try:
        started: CollectivesLike = module.start(recorder.append, step_of)
    except Exception as error:
        if is_foreign(error):
            raise
        return NoCollectives()
    return started
