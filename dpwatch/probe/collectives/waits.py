"""When Python callers wait for their calls: by `Work.wait`, or by a future of it.

What they wait for (`Work`, `Future`, a future derived from another one) is known by weak reference,
and the patched methods look up whose call it is. When it is dropped without a wait, the weak
reference's callback records that. The callback is implemented in C, since one in Python would
swallow what a signal handler raises in it.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from dpwatch.probe.collectives.calls import Call, CallbackPace, completion_of
from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.steps.lanes import Lane, here
from dpwatch.probe.steps.step_record import IDLE, MOVED

Replace = Callable[[Any, str, Callable[..., Any]], None]
"""Replaces a method of a class until the probe closes."""


class Waits:
    """Calls that Python callers can wait for."""

    def __init__(self, pace: CallbackPace) -> None:
        self._pace = pace
        self._calls: dict[weakref.ref[Any], Call] = {}
        self._dead: deque[weakref.ref[Any]] = deque()

    def install(self, replace: Replace) -> None:
        """Patches the methods by which callers wait."""
        replace(dist.Work, "wait", self._wait(dist.Work.wait))
        replace(dist.Work, "get_future", self._get_future(dist.Work.get_future))
        future: Any = torch._C.Future
        replace(future, "wait", self._wait(future.wait))
        replace(future, "then", self._then(future.then))

    def watch(self, handle: Any, call: Call) -> None:
        """The caller got this handle to wait for the call."""
        call.handles += 1
        try:
            self._calls[weakref.ref(handle, self._dead.append)] = call
        except TypeError:  # a backend's own type of work
            call.closed = True

    def forget(self) -> None:
        """Closes calls whose handles have all been freed. On the sender thread."""
        while self._dead:
            call = self._calls.pop(self._dead.popleft(), None)
            if call is not None:
                call.dropped += 1
                if call.dropped == call.handles:
                    call.closed = True

    def clear(self) -> None:
        """Forgets all calls."""
        self._calls.clear()

    def _wait(self, original: Any) -> Callable[..., Any]:
        calls, reference, clock = self._calls, weakref.ref, time.monotonic_ns

        @functools.wraps(original)
        def wait(handle: Any, *args: Any, **kwargs: Any) -> Any:
            call = calls.get(reference(handle))
            if call is None or call.closed:
                return original(handle, *args, **kwargs)
            lane = here.lane
            began_ns = clock() if lane is None else now(lane)
            try:
                result = original(handle, *args, **kwargs)
                call.waited(began_ns, clock())
            finally:
                call.closed = True
                if lane is not None:
                    lane.sums[MOVED] += now(lane, blocked_as=IDLE) - began_ns
            return result

        return wait

    def _get_future(self, original: Any) -> Callable[..., Any]:

        @functools.wraps(original)
        def get_future(work: Any) -> Any:
            future = original(work)
            self._follow(work, future)
            return future

        return get_future

    def _then(self, original: Any) -> Callable[..., Any]:

        @functools.wraps(original)
        def then(future: Any, *args: Any, **kwargs: Any) -> Any:
            after = original(future, *args, **kwargs)
            self._follow(future, after)
            return after

        return then

    def _follow(self, handle: Any, other: Any) -> None:
        """Waiting for `other` is waiting for the call of `handle`."""
        call = self._calls.get(weakref.ref(handle))
        if call is None or call.closed:
            return
        self.watch(other, call)
        try:
            if call.ended is None and call.on_host and self._pace.due(call.step, call.issued_ns):
                call.ended = completion_of(other)
        except Exception as error:
            if is_foreign(error):
                raise


def now(lane: Lane, *, blocked_as: int | None = None) -> int:
    """The current time. In a measured step, also attributes the time the thread was blocked so far.

    Args:
        lane: This thread's.
        blocked_as: What that time counts as; by default what it counts as at this point. Time
            blocked in a wait is part of the wait's own time, which is recorded as such.
    """
    if lane.measuring:
        try:
            return lane.sample(lane.blocked_as() if blocked_as is None else blocked_as)
        except Exception as error:
            if is_foreign(error):
                raise
    return time.monotonic_ns()
