"""Observes every collective and point-to-point call of this process, from Python and from C++.

An observer at the dispatcher's BackendSelect key is called for each `c10d` op, records it, and
passes the call on with `redispatch_boxed`, which releases the GIL. (The documented way, calling the
kernel boxed, holds the GIL and deadlocks with gloo's worker.) It changes neither arguments nor
results.

When a call completes is observed in two ways:

- Python callers get a `Work`, or a future of it, and wait for it: see `waits`. Neither is kept
  alive.
- Calls from C++ are not observed again, so in sampled steps a callback on the work's future reports
  completion. It needs the GIL on the backend's thread, so it is used only as often as costs under 1
  % of a step.

On CUDA neither works (both fire when the kernel is queued): `completed_ns` is None there. Durations
may come from torch's own recorder (see `flight_recorder`), which is given the calls that returned.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from dpwatch.probe import dynamo
from dpwatch.probe.collectives.calls import Call, CallbackPace, completion_of
from dpwatch.probe.collectives.flight_recorder import calls_to_keep
from dpwatch.probe.collectives.groups import Groups, Unknown
from dpwatch.probe.collectives.ops import DISPATCHER_OPS, GROUP_METHODS, Op, is_fake
from dpwatch.probe.collectives.reports import Reports
from dpwatch.probe.collectives.uninterrupted import raise_on_return, script_exception, uninterrupted
from dpwatch.probe.collectives.waits import Waits, now
from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.steps.lanes import Lane, here
from dpwatch.probe.steps.step_record import IDLE, MOVED
from dpwatch.wire.messages import Issuer, Position, Step

if TYPE_CHECKING:
    from dpwatch.probe.send.recorder import RecordSink

_ON_CALLERS_THREADS = tuple(
    f"dpwatch.probe.{name}"
    for name in (
        "collectives.calls", "collectives.flight_recorder", "collectives.groups",
        "collectives.observer", "collectives.ops", "collectives.uninterrupted",
        "collectives.waits", "foreign", "probe", "send.recorder", "stack.call_site",
        "stack.frameworks", "steps.lanes", "steps.thread_clock",
    )
)  # fmt: skip
"""Modules whose functions run on callers' threads, where dynamo would compile them while it is
on."""


def start(record: RecordSink, step_of: Callable[[], int]) -> Collectives:
    """Starts observing.

    Args:
        record: Takes `(function, call)`, where the function makes the call's record, and
            `(Duration, step, op, …)`; from any thread.
        step_of: Returns the current step.

    Returns:
        The observer; its `capture` says what it observes.
    """
    return Collectives(record, step_of)


class Collectives:
    """Observes collectives until closed.

    Attributes:
        issued: Calls issued so far, including point-to-point ones; never decreases.
        capture: `observer` (all calls), `patch` (Python callers only), `none`.
        main: The training thread's lane, once there is one.
        calls: NCCL calls that have returned, None if they are not needed.
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
        self._waits = Waits(self._pace)
        self._reports = Reports(record, step_of, self._groups, self._waits)
        self._to_record = self._reports.to_record
        self._has_unknown_groups = False
        self._unseen: set[str] = set()
        self._future_of: Callable[[Any], Any] = _itself
        self._restore: list[Callable[[], None]] = []
        if not dist.is_available():
            return
        self._future_of = dist.Work.get_future
        ours = (sys.modules.get(name) for name in _ON_CALLERS_THREADS)
        dynamo.leave_modules_alone(*(module for module in ours if module is not None))
        self._patch_groups()
        self._waits.install(self._replace)
        self.capture = "observer" if self._observe() else "patch"
        if self.capture != "observer":
            self.calls = None  # without C++ callers, captures cannot be detected

    def positions(self) -> list[Position]:
        """Progress in each group, latest first. On the sender thread."""
        return self._reports.positions()

    def issuers(self) -> list[Issuer]:
        """What frameworks have issued so far. On the sender thread."""
        return self._reports.issuers.totals()

    def complete(self, step: Step) -> Step:
        """Adds what is known of its communication to a step's record. On the sender thread."""
        return self._reports.complete(step) if self.capture == "observer" else step

    def unseen(self) -> str:
        """Communication, now or earlier, that is not observed; "" if none is known."""
        rpc: Any = sys.modules.get("torch.distributed.rpc.api")
        has_agent = getattr(rpc, "_is_current_rpc_agent_set", None)
        found = {
            "calls from C++": self.capture == "patch",
            "process groups that torch.distributed did not make": self._has_unknown_groups,
            "torch.distributed.rpc": has_agent is not None and has_agent(),
            "torchft": "torchft" in sys.modules,
            "horovod": "horovod.torch" in sys.modules,
        }
        self._unseen |= {name for name, is_there in found.items() if is_there}
        return ", ".join(name for name in found if name in self._unseen)

    def close(self) -> None:
        """Removes the observer and all patches."""
        while self._restore:
            self._restore.pop()()
        self._waits.clear()

    # -- one call ----------------------------------------------------------------------------

    def _enter(self, form: CallShape, args: tuple[Any, ...], seen: list[Call]) -> None:
        """Records a call that is about to be issued; if called again, continues where it left off.

        Args:
            form: The call's signature.
            args: Its arguments.
            seen: Receives the call, if it is to be recorded.

        Raises:
            BaseException: Only what a signal handler raised.
        """
        if not seen:
            try:
                self._observe_call(form, args, seen)
            except Exception as error:
                if script_exception(error):
                    raise
        for call in seen:
            if call.seq >= 0:
                continue
            row, group = (self._to_record, call), call.group
            # No call from here to the record, so no signal handler and no other thread runs.
            if call.op.peer is None:
                call.seq = group.issued
                group.issued = call.seq + 1
                group.newest = call
            else:
                name = call.op.name
                call.seq = group.messages[name]
                group.messages[name] = call.seq + 1
            self._record(row)

    def _observe_call(self, form: CallShape, args: tuple[Any, ...], seen: list[Call]) -> None:
        op = form.op
        first = None if op.payload is None else args[op.payload]
        while type(first) is list or type(first) is tuple:
            first = first[0] if first else None
        if first is not None and is_fake(first):
            return
        self.issued += 1
        lane = here.lane
        if lane is None and _in_backward():  # autograd's own threads work for the main one
            lane = self.main
        try:
            group = self._groups.of(form.unbox(args[form.group]))
        except Unknown:
            self._has_unknown_groups = True
            return
        call = Call(op, group, args, first, self._step_of(), lane)
        if form.peer is not None:
            call.peer = group.members[args[form.peer]]
        if form.is_async is not None:
            # The dispatcher leaves out what equals its default, which is True.
            call.is_async = args[form.is_async] if len(args) > form.is_async else True
        inside = self._thread.inside
        if inside is not None:
            inside.append(call)
            call.from_python = True
        call.watched = call.on_host and (call.from_python or self._is_due(call))
        seen.append(call)

    def _is_due(self, call: Call) -> bool:
        """Whether a callback should report completion: not in skipped steps."""
        if self.main is not None and self.main.sampled_out:
            return False
        return self._pace.due(call.step, call.issued_ns)

    def _leave(self, call: Call, work: Any, lane: Lane | None) -> None:
        """A Python caller has its `Work`, or was blocked in the call itself."""
        if lane is None:
            call.returned_ns = time.monotonic_ns()
        else:
            call.returned_ns = now(lane, blocked_as=IDLE)
            lane.sums[MOVED] += call.returned_ns - call.issued_ns
        if work is None:  # as monitored_barrier does
            call.waited(call.returned_ns, call.returned_ns)
            return
        self._waits.watch(work, call)
        if call.is_async and call.on_host and self._is_due(call):
            self._watch_end(call, work)  # it may complete long before it is waited for

    def _watch_end(self, call: Call, work: Any) -> bool:
        """Adds a completion callback to the call. Returns: whether that is possible."""
        try:
            call.ended = completion_of(self._future_of(work))
        except Exception as error:  # gloo's reduce_scatter and point-to-point calls have no future
            if script_exception(error):
                raise
            return False
        return True

    def _issued(self, call: Call, result: Any) -> None:
        """The backend has the call. For C++ callers only a future can report completion now."""
        if self.calls is not None and not (call.on_host or call.op.peer is not None):
            self.calls.returned.append(call.as_returned())
        if call.from_python or not call.watched:
            return
        boxed = _work_in(result)
        if boxed is None or not self._watch_end(call, dist.Work.unbox(boxed)):
            call.closed = True

    # -- where calls are seen ----------------------------------------------------------------

    def _observe(self) -> bool:
        """Installs the observer at BackendSelect; False if this torch lacks what it needs."""
        library = None
        try:
            unbox, _ = dist.ProcessGroup.unbox, dist.Work.unbox
            below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
            library = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
            for name, kernel in self._kernels(unbox, below):
                library.impl(name, kernel, "BackendSelect", with_keyset=True)  # type: ignore[no-untyped-call]
        except Exception as error:  # private names: another torch may lack them
            if library is not None:
                library._destroy()  # type: ignore[no-untyped-call]
            if is_foreign(error):
                raise
            return False
        self._restore.append(library._destroy)
        return True

    def _kernels(self, unbox: Any, below: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yields each op that this torch has, with the kernel to install for it."""
        for name, op in DISPATCHER_OPS.items():
            packet = getattr(torch.ops.c10d, name, None)
            if packet is None:
                continue
            overload = packet.default
            form = _call_shape(op, unbox, overload)
            if form is not None:
                yield name, self._kernel(form, overload._handle.redispatch_boxed, below)

    def _kernel(self, form: CallShape, redispatch: Any, below: Any) -> Callable[..., Any]:
        enter, leave = self._enter, self._issued

        # C++ calls it, so it may raise nothing but what `redispatch` raised.
        @uninterrupted
        def kernel(keys: Any, *args: Any) -> Any:
            try:
                held: BaseException | None = None
                issue: Any = None
                seen: list[Call] = []
                issue = starmap(redispatch, [(keys & below, *args)])
                if self.calls is not None:
                    self.calls.note_capture()
                enter(form, args, seen)
            except BaseException as error:  # noqa: BLE001
                held = script_exception(error)
                issue = issue or starmap(redispatch, [(keys & below, *args)])
                enter(form, args, seen)  # it is issued anyway, and needs its number
            try:
                (result,) = issue
            except BaseException:
                if seen:
                    seen[0].cancel()
                raise
            try:
                if seen:
                    leave(seen[0], result)
            except BaseException as error:  # noqa: BLE001
                held = script_exception(error)
                seen[0].closed = True
            if held is not None:
                (_,) = raise_on_return(held)
            return result

        dynamo.leave_alone(kernel)
        return kernel

    def _patch_groups(self) -> None:
        for name, op in GROUP_METHODS.items():
            original = getattr(dist.ProcessGroup, name, None)
            if original is not None:
                self._replace(dist.ProcessGroup, name, self._method(op, original))

    def _method(self, op: Op, original: Any) -> Callable[..., Any]:
        thread = self._thread
        form = CallShape(op, -1, 1 if op.peer else None, None, _itself)

        @functools.wraps(original)
        def method(group: Any, *args: Any, **kwargs: Any) -> Any:
            # If a method calls another one, the inner call is the collective.
            if thread.inside is not None:
                return original(group, *args, **kwargs)
            lane = here.lane
            if lane is not None and lane.measuring:
                now(lane)
            inside: list[Call] = []
            thread.inside = inside
            try:
                if self.capture == "patch":
                    self._enter(form, (*args, group), [])
                work = original(group, *args, **kwargs)
            except BaseException:
                for call in inside:  # nobody can wait for it here
                    call.closed = True
                raise
            finally:
                thread.inside = None
            if inside:
                self._leave(inside[-1], work, lane)
            return work

        return method

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        own = vars(owner).get(name)  # None: inherited
        ours = _method_of_c(function)

        def put_back() -> None:
            if vars(owner).get(name) is not ours:  # somebody has since patched over it
                return
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        setattr(owner, name, ours)
        self._restore.append(put_back)


class CallShape(NamedTuple):
    """Signature of a call: positions of its arguments, None for those it lacks.

    Attributes:
        group: Position of the process group.
        unbox: Converts that argument to the Python object.
    """

    op: Op
    group: int
    peer: int | None
    is_async: int | None
    unbox: Callable[[Any], Any]


def _call_shape(op: Op, unbox: Any, overload: Any) -> CallShape | None:
    """An op's signature by its schema, None if it differs from what is known here."""
    places = {argument.name: i for i, argument in enumerate(overload._schema.arguments)}
    if "process_group" not in places:
        return None
    peer = places.get(op.peer) if op.peer else None
    return CallShape(op, places["process_group"], peer, places.get("async_op"), unbox)


class _Thread(threading.local):
    """While a thread is inside a group's method: the calls that it has issued there."""

    inside: list[Call] | None = None


def _itself(thing: Any) -> Any:
    return thing


def _method_of_c(function: Callable[..., Any]) -> Any:
    """Wraps a function like pybind's methods.

    torch.compile then breaks the graph at it, as it does at theirs; it would trace a Python
    function.
    """
    guise = ctypes.pythonapi.PyInstanceMethod_New
    guise.restype, guise.argtypes = ctypes.py_object, [ctypes.py_object]
    return guise(function)


def _in_backward() -> bool:
    """Whether autograd is running on this thread: on CUDA it has threads of its own."""
    running: bool = torch._C._current_graph_task_id() != -1
    return running


def _work_in(result: Any) -> Any:
    """The boxed `Work` that an op returned, None without one."""
    last = result[-1] if isinstance(result, tuple | list) and result else result
    return last if isinstance(last, torch.ScriptObject) else None
