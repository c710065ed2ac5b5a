"""Sees every collective this process issues, from Python and from C++ (DDP's reducer), as it is.

An observer at the dispatcher's BackendSelect key is called for each `c10d` op, takes note, and
passes the call on with `redispatch_boxed`, which gives up the GIL. (The documented way, calling the
kernel boxed, holds it, and deadlocks with gloo's worker.) It changes neither arguments nor results.

When a collective is done is known in two ways:

- Python callers get a `Work` and wait for it: the patched `Work.wait` tells when, and for how long
  they were blocked. Nothing keeps a `Work` alive.
- From C++ nobody passes by again, so on sampled steps a callback on the work's future tells. It
  needs the GIL on the backend's thread (≈50 µs), hence only as often as costs under 1 % of a step.

On CUDA neither tells the truth (both come when the kernel is queued): `completed_ns` is None there.
Durations may follow from torch's flight recorder (see `flight`), which is told of returned calls.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dpwatch.probe.collectives_ops import (
    DISPATCHER_OPS,
    GROUP_METHODS,
    POINT_TO_POINT_OPS,
    WORLD,
    Group,
    Groups,
    Op,
    is_fake,
    payload_of,
)
from dpwatch.probe.flight import calls_to_keep
from dpwatch.probe.lanes import NO_PHASE, Lane, here
from dpwatch.probe.whereabouts import issuer, spelled
from dpwatch.wire.messages import PHASES, Collective, Position

if TYPE_CHECKING:
    from dpwatch.probe.seams import RecordSink

CALLBACK_NS = 50_000
"""What a completion callback costs, generously."""

COST_SHARE = 0.008
"""Of a step, that callbacks may cost on average."""

MOST_GROUPS = 16
MOST_TOLD = 64
"""Groups, and members of one, that a heartbeat tells of."""

PROMPT_NS = 50_000
"""A wait that starts this soon after the call, or blocks this long, ends when the work ends."""


def start(record: RecordSink, step_of: Callable[[], int]) -> Collectives:
    """Begins to observe.

    Args:
        record: Takes `(Collective, step, op, …)`, from any thread.
        step_of: The step under way.

    Returns:
        The observer; `capture` says what it sees.
    """
    return Collectives(record, step_of)


class Call:
    """One collective under way. `emit` records it, once."""

    __slots__ = ("blocked_ns", "completed_ns", "device", "dtype", "group", "into_ns", "is_async",
                 "issued_ns", "nbytes", "nbytes_out", "on_host", "op", "phase", "place",
                 "returned_ns", "sent", "seq", "step")  # fmt: skip

    def __init__(
        self, op: Op, group: Group, payload: Any, output: Any, step: int, lane: Lane | None
    ) -> None:
        self.op = op.name
        self.group = group
        self.seq = next(group.sequence)
        self.step = step
        self.nbytes, first = (0, None) if op.payload is None else payload_of(payload)
        self.dtype = "" if first is None else _dtype_name(first.dtype)
        self.on_host = first is None or first.is_cpu
        self.completed_ns: int | None = None
        self.blocked_ns: int | None = None
        self.nbytes_out = self.nbytes if output is None else payload_of(output)[0]
        self.sent = False
        self.is_async: bool | None = None
        self.place = issuer()
        self.device = 0 if lane is None else lane.device
        self.issued_ns = self.returned_ns = time.monotonic_ns()
        self.phase, self.into_ns = NO_PHASE, None
        if lane is not None and lane.phase >= 0:
            self.phase, self.into_ns = lane.phase, self.issued_ns - lane.phase_start

    def waited(self, began_ns: int, ended_ns: int) -> None:
        """The caller waited for it and went on."""
        waited_ns = ended_ns - began_ns
        self.blocked_ns = self.returned_ns - self.issued_ns + waited_ns
        prompt = began_ns - self.returned_ns < PROMPT_NS or waited_ns > PROMPT_NS
        if self.completed_ns is None and self.on_host and prompt:
            self.completed_ns = ended_ns

    def emit(self, record: RecordSink) -> None:
        """Records what is known now."""
        if self.sent:
            return
        self.sent = True
        # On CUDA a wait only queues, so that it says nothing of what compute waited for.
        blocked_ns = self.blocked_ns if self.on_host else None
        record(
            (collective_record, self.step, self.op, self.group.name, self.group.size, self.seq,
             self.nbytes, self.issued_ns, self.completed_ns, blocked_ns, self.dtype,
             self.device, self.phase, self.into_ns, self.place, self.is_async, self.nbytes_out)
        )  # fmt: skip

    def kept(self) -> tuple[Any, ...]:
        """What `flight_entries.Call` has of it, now that it has returned."""
        group = self.group
        return (self.issued_ns, time.monotonic_ns(), group.uid, self.op, self.nbytes, self.step,
                group.name, group.size, self.seq, self.device)  # fmt: skip

    def position(self) -> Position:
        """This call as the place its group has come to; from any thread."""
        members = self.group.members
        return Position(
            group=self.group.name,
            ranks=self.group.size,
            seq=self.seq,
            op=self.op,
            nbytes=self.nbytes,
            dtype=self.dtype,
            issued_ns=self.issued_ns,
            step=self.step,
            done=self.completed_ns is not None or self.blocked_ns is not None,
            where=spelled(self.place),
            members=[] if self.group.name == WORLD or len(members) > MOST_TOLD else members,
        )


def collective_record(*fields: Any) -> Collective:
    """The record of a call; on the sender thread, which has the time to spell its place."""
    *known, phase, into_ns, place, is_async, nbytes_out = fields
    told: tuple[Any, ...] = (
        *known,
        PHASES[phase] if phase >= 0 else "",
        into_ns,
        spelled(place),
        is_async,
        nbytes_out,
    )
    return Collective(*told)


class Collectives:
    """Observes collectives until closed.

    Attributes:
        issued: Collectives issued so far; only grows.
        capture: `observer` (every one), `patch` (Python callers only), `none`.
        main: The training thread's lane, once there is one.
        calls: NCCL calls that have returned, None unless somebody is to look at them.
    """

    def __init__(self, record: RecordSink, step_of: Callable[[], int]) -> None:
        """Installs what this torch allows; see `start`."""
        self.issued = 0
        self.capture = "none"
        self.main: Lane | None = None
        self.calls = calls_to_keep(os.environ)
        self._record = record
        self._step_of = step_of
        self._groups = Groups()
        self._pace = CallbackPace()
        self._thread = _Thread()
        self._last: dict[str, Call] = {}
        self._waits: dict[int, tuple[weakref.ref[Any], Call]] = {}
        self._restore: list[Callable[[], None]] = []
        if not dist.is_available():
            return
        self._patch_groups()
        self._patch_wait()
        self.capture = "observer" if self._observe() else "patch"
        if self.capture != "observer":
            self.calls = None  # without C++ callers it is not known what is captured

    def positions(self) -> list[Position]:
        """How far each group has come, the latest first, for whoever looks for a hang."""
        calls = sorted(self._last.copy().values(), key=lambda call: -call.issued_ns)
        return [call.position() for call in calls[:MOST_GROUPS]]

    def close(self) -> None:
        """Removes the observer and all patches, and records what is still under way."""
        while self._restore:
            self._restore.pop()()
        for _, call in list(self._waits.values()):
            call.emit(self._record)
        self._waits.clear()

    # -- what happens to one call ------------------------------------------------------------

    def _enter(
        self, op: Op, process_group: Any, args: tuple[Any, ...], unbox: Any = None
    ) -> Call | None:
        """Takes note that a collective is being issued; never raises."""
        try:
            payload = None if op.payload is None else args[op.payload]
            if payload is not None and is_fake(payload):
                return None
            self.issued += 1
            output = args[0] if op.payload else None
            lane = here.lane
            if lane is None and _in_backward():  # autograd's own thread works for the main one
                lane = self.main
            group = self._groups.of(unbox(process_group) if unbox else process_group)
            call = Call(op, group, payload, output, self._step_of(), lane)
            self._last[call.group.name] = call
        except Exception:  # noqa: BLE001  (never into training)
            return None
        return call

    def _leave(self, call: Call, work: Any) -> None:
        """A Python caller has its `Work`: its wait, or its end unwaited, completes the record."""
        call.returned_ns = time.monotonic_ns()
        if work is None:  # it blocked inside, as monitored_barrier does
            call.waited(call.returned_ns, call.returned_ns)
            call.emit(self._record)
            return
        key = id(work)

        def dropped(_: object) -> None:
            self._waits.pop(key, None)
            call.emit(self._record)

        try:
            self._waits[key] = (weakref.ref(work, dropped), call)
        except TypeError:  # a backend's own kind of work
            call.emit(self._record)

    def _leave_native(self, call: Call, result: Any) -> None:
        """C++ has it: no one comes back here, but perhaps the future does; never raises."""

        def done(_: object) -> None:
            call.completed_ns = time.monotonic_ns()
            call.emit(self._record)

        try:
            boxed = _work_in(result)
            due = self._pace.due(call.step, call.issued_ns)
            if boxed is not None and due and call.on_host:
                dist.Work.unbox(boxed).get_future().add_done_callback(done)
                return
        except Exception:  # noqa: BLE001  (gloo's reduce_scatter has no future)
            pass
        call.emit(self._record)

    # -- where calls are seen ----------------------------------------------------------------

    def _observe(self) -> bool:
        """Installs the observer at BackendSelect; False where this torch has not what it takes."""
        library = None
        try:
            unbox, _ = dist.ProcessGroup.unbox, dist.Work.unbox
            below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
            library = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
            for name, kernel in self._kernels(unbox, below):
                library.impl(name, kernel, "BackendSelect", with_keyset=True)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001  (private names: another torch may lack them)
            if library is not None:
                library._destroy()  # type: ignore[no-untyped-call]
            return False
        self._restore.append(library._destroy)
        return True

    def _kernels(self, unbox: Any, below: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
        """An op's name and what is put before it, for each that this torch has."""
        for name, op in DISPATCHER_OPS.items():
            packet = getattr(torch.ops.c10d, name, None)
            if packet is not None:
                yield name, self._kernel(op, unbox, packet.default, below)
        for name in POINT_TO_POINT_OPS if self.calls is not None else ():
            packet = getattr(torch.ops.c10d, name, None)
            if packet is not None:
                yield name, self._lookout(packet.default, below)

    def _kernel(self, op: Op, unbox: Any, overload: Any, below: Any) -> Callable[..., Any]:
        redispatch = overload._handle.redispatch_boxed
        told_async = _place_of("async_op", overload)
        group_place = _place_of("process_group", overload)

        def kernel(keys: Any, *args: Any) -> Any:
            call = None
            if group_place is not None:
                call = self._enter(op, args[group_place], args, unbox)
            if call is not None and told_async is not None:
                # The dispatcher leaves out what equals its default, which is True.
                call.is_async = args[told_async] if len(args) > told_async else True
            calls = self.calls
            if calls is not None:
                calls.look()
            result = redispatch(keys & below, *args)
            if call is not None:
                if calls is not None and not call.on_host:
                    calls.returned.append(call.kept())
                if self._thread.from_python:
                    self._thread.call = call
                else:
                    self._leave_native(call, result)
            return result

        return kernel

    def _lookout(self, overload: Any, below: Any) -> Callable[..., Any]:
        """For point-to-point calls, of which nothing is recorded: are they being captured?"""
        redispatch = overload._handle.redispatch_boxed

        def kernel(keys: Any, *args: Any) -> Any:
            if self.calls is not None:
                self.calls.look()
            return redispatch(keys & below, *args)

        return kernel

    def _patch_groups(self) -> None:
        for name, op in GROUP_METHODS.items():
            original = getattr(dist.ProcessGroup, name, None)
            if original is not None:
                self._patch(dist.ProcessGroup, name, self._method(op, original))

    def _method(self, op: Op, original: Any) -> Callable[..., Any]:
        thread = self._thread

        @functools.wraps(original)
        def method(group: Any, *args: Any, **kwargs: Any) -> Any:
            if thread.from_python:  # a method that calls another one: the inner is the collective
                return original(group, *args, **kwargs)
            thread.from_python, thread.call = True, None
            try:
                if self.capture == "patch":
                    thread.call = self._enter(op, group, args)
                work = original(group, *args, **kwargs)
            finally:
                thread.from_python = False
                call, thread.call = thread.call, None
            if call is not None:
                self._leave(call, work)
            return work

        return method

    def _patch_wait(self) -> None:
        original = dist.Work.wait
        waits = self._waits

        @functools.wraps(original)
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            _, call = waits.pop(id(work), (None, None))
            if call is None:
                return original(work, *args, **kwargs)
            began_ns = time.monotonic_ns()
            try:
                result = original(work, *args, **kwargs)
                call.waited(began_ns, time.monotonic_ns())
            finally:
                call.emit(self._record)
            return result

        self._patch(dist.Work, "wait", wait)

    def _patch(self, owner: Any, name: str, replacement: Any) -> None:
        own = vars(owner).get(name)  # None: inherited
        setattr(owner, name, replacement)
        if own is None:
            self._restore.append(lambda: delattr(owner, name))
        else:
            self._restore.append(lambda: setattr(owner, name, own))


class CallbackPace:
    """Decides on which steps completion callbacks are affordable.

    Steps are chosen by number, and only every 2ⁿ-th, so ranks choose the same ones.
    """

    def __init__(self) -> None:
        self.every = 1
        self._step = -1
        self._began_ns = 0
        self._calls = 0

    def due(self, step: int, now_ns: int) -> bool:
        """Whether this native collective, issued now, gets a callback."""
        if step != self._step:
            if self._step >= 0 and step > self._step:
                self._adapt((now_ns - self._began_ns) / (step - self._step))
            self._step, self._began_ns, self._calls = step, now_ns, 0
        self._calls += 1
        return step % self.every == 0

    def _adapt(self, step_ns: float) -> None:
        needed = self._calls * CALLBACK_NS / (COST_SHARE * max(step_ns, 1.0))
        if needed > self.every:
            self.every *= 2
        elif needed < self.every / 4:
            self.every = max(1, self.every // 2)


class _Thread(threading.local):
    """Whether a Python caller is inside a group's method on this thread, and what it issued."""

    from_python = False
    call: Call | None = None


@functools.cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_backward() -> bool:
    """Whether autograd is at work on this thread: on CUDA it has threads of its own."""
    running: bool = torch._C._current_graph_task_id() != -1
    return running


def _place_of(name: str, overload: Any) -> int | None:
    """An argument's position in an op's schema, None if this torch's has none of that name."""
    names = [argument.name for argument in overload._schema.arguments]
    return names.index(name) if name in names else None


def _work_in(result: Any) -> Any:
    """The boxed `Work` an op returned, None if it returns none."""
    last = result[-1] if isinstance(result, tuple | list) and result else result
    return last if isinstance(last, torch.ScriptObject) else None
