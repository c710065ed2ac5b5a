"""A process group, and one call in it, as the caller's thread sees it and as it is recorded."""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from functools import partial
from typing import Any

import torch

from dpwatch.probe.collectives.ops import Op, nbytes_of
from dpwatch.probe.stack.call_site import format_place, issuer
from dpwatch.probe.steps.lanes import NO_PHASE, Lane
from dpwatch.wire.messages import PHASES, Collective, Duration, Position, Unfinished

WORLD = "default"
"""Name of the group of all ranks."""

CALLBACK_NS = 50_000
"""Upper estimate of the cost of a completion callback."""

COST_SHARE = 0.008
"""Share of a step that callbacks may cost on average."""

MOST_TOLD = 64
"""Groups with more members than this are reported without them."""

PROMPT_NS = 50_000
"""If `wait` starts this soon after the call, or blocks this long, it ends when the work
completes."""


class Group:
    """A process group.

    Attributes:
        name: `default` for the world, otherwise the device mesh dimension's name and its ranks.
        size: Number of ranks.
        members: Global ranks of its members.
        is_first: Whether this process is the first of them.
        uid: c10d's own name for it.
        generation: Number of earlier groups with this name.
        issued: Collectives issued so far, which is the next one's number.
        messages: The same for point-to-point calls, by op.
        newest: The last collective, None before the first and once the group is forgotten.
        unwatched: The first collective of its step whose completion is not observed, None without
            one. Used on the sender thread.
    """

    __slots__ = ("generation", "is_first", "issued", "members", "messages", "name", "newest", "ref",
                 "size", "uid", "unwatched")  # fmt: skip

    def __init__(
        self, name: str, generation: int, process_group: Any, members: list[int], dead: deque[Any]
    ) -> None:
        self.name = name
        self.generation = generation
        self.size = process_group.size()
        self.members = members
        self.is_first: bool = process_group.rank() == 0
        self.uid: str = process_group.group_name
        # Called when the group is freed; implemented in C, so that nothing can interrupt it.
        self.ref = weakref.ref(process_group, dead.append)
        self.issued = 0
        self.messages = {"send": 0, "recv": 0}
        self.newest: Call | None = None
        self.unwatched: Call | None = None


class Call:
    """A call in progress or completed.

    Its caller's thread writes it and the sender thread reads it: `closed` is set last.

    Attributes:
        seq: Its sequence number, -1 before it has one.
        place: Source line that issued it, the user's or a package's.
        owner: The framework function that it was issued under, if its purpose is known.
        watched: Whether its completion is observed: by a Python caller's wait, or by a callback.
        ended: List in which a completion callback stores the time. None without a callback.
        from_python: Its caller is Python, and gets something to wait for.
        latest_ns: Latest possible completion time, None if not even that is known.
        handles: Number of `Work` and `Future` objects through which a Python caller can wait for
            it.
        dropped: How many of those have been freed. Used on the sender thread.
        closed: Nothing more will become known about it.
        cancelled: It could not be issued.
    """

    # Defaults are class attributes, which makes creating a call cheaper.
    seq = -1
    peer: int | None = None
    is_async: bool | None = None
    from_python = watched = closed = cancelled = False
    ended: list[int] | None = None
    handles = dropped = 0
    completed_ns: int | None = None
    latest_ns: int | None = None
    blocked_ns: int | None = None
    device = 0
    phase = NO_PHASE
    into_ns: int | None = None

    def __init__(
        self,
        op: Op,
        group: Group,
        args: tuple[Any, ...],
        first: torch.Tensor | None,
        step: int,
        lane: Lane | None,
    ) -> None:
        self.op = op
        self.group = group
        self.step = step
        place = op.payload
        if place is None or first is None:
            self.nbytes, self.dtype, self.on_host = 0, None, True
        else:
            self.nbytes, self.dtype, self.on_host = (
                nbytes_of(args[place]),
                first.dtype,
                first.is_cpu,
            )
        self.nbytes_out = nbytes_of(args[0]) if place else self.nbytes
        self.place, self.owner = issuer()
        self.issued_ns = self.returned_ns = time.monotonic_ns()
        if lane is not None:
            self.device = lane.device
            if lane.phase >= 0:
                self.phase, self.into_ns = lane.phase, self.issued_ns - lane.phase_start

    def cancel(self) -> None:
        """It could not be issued: the next one gets its number, and it is not recorded."""
        self.closed = True
        if self.op.name == "monitored_barrier":  # it raises after it was entered
            return
        self.cancelled, group = True, self.group
        if self.op.peer is None and group.newest is self:
            group.issued, group.newest = self.seq, None

    def waited(self, began_ns: int, ended_ns: int) -> None:
        """The caller waited for it and continued."""
        waited_ns = ended_ns - began_ns
        self.blocked_ns = self.returned_ns - self.issued_ns + waited_ns
        prompt = began_ns - self.returned_ns < PROMPT_NS or waited_ns > PROMPT_NS
        if self.on_host:
            if prompt:
                self.completed_ns = ended_ns
            else:
                self.latest_ns = began_ns
        self.closed = True

    def is_final(self) -> bool:
        """Whether nothing more will become known about it."""
        return self.closed or not self.watched or bool(self.ended and not self.handles)

    def is_over(self) -> bool:
        """Whether it is known to be complete. On CUDA a wait only queues, so it shows nothing."""
        return self.done_ns() is not None or (self.on_host and self.blocked_ns is not None)

    def done_ns(self) -> int | None:
        """When it completed, None if unknown."""
        return self.ended[0] if self.ended else self.completed_ns

    def as_returned(self) -> tuple[Any, ...]:
        """Fields of `flight_matching.ReturnedCall`, now that the call has returned."""
        group = self.group
        return (self.issued_ns, time.monotonic_ns(), group.uid, self.op.name, self.nbytes,
                self.step, group.name, group.size, self.seq, self.device)  # fmt: skip

    # -- records, made on the sender thread ---------------------------------------------------

    def record(self, *, final: bool) -> Collective:
        """The call's record, with its completion if that is `final`."""
        group = self.group
        return Collective(
            step=self.step,
            op=self.op.name,
            group=group.name,
            ranks=group.size if self.op.peer is None else 1,
            seq=self.seq,
            nbytes=self.nbytes,
            issued_ns=self.issued_ns,
            completed_ns=self.done_ns() if final else None,
            # On CUDA a wait only queues, so it does not show how long compute waited.
            blocked_ns=self.blocked_ns if final and self.on_host else None,
            dtype=_dtype_name(self.dtype),
            device=self.device,
            phase=PHASES[self.phase] if self.phase >= 0 else "",
            into_ns=self.into_ns,
            where=format_place(self.place),
            is_async=self.is_async,
            nbytes_out=self.nbytes_out,
            generation=group.generation if self.op.peer is None else 0,
            peer=self.peer,
        )

    def end(self) -> tuple[Any, ...] | None:
        """The `Duration` to send after the call's record has left, None if nothing is known."""
        done_ns, group = self.done_ns(), self.group
        if done_ns is None and self.blocked_ns is None:
            return None
        took_ns = None if done_ns is None else done_ns - self.issued_ns
        return (Duration, self.step, self.op.name, group.name,
                group.size if self.op.peer is None else 1, self.seq, self.nbytes, took_ns,
                self.device, done_ns, self.blocked_ns)  # fmt: skip

    def position(self, oldest: Call | None) -> Position:
        """This call as its group's newest one; `oldest` is an earlier one."""
        group = self.group
        return Position(
            group=group.name,
            ranks=group.size,
            seq=self.seq,
            op=self.op.name,
            nbytes=self.nbytes,
            dtype=_dtype_name(self.dtype),
            issued_ns=self.issued_ns,
            step=self.step,
            done=self.is_over(),
            where=format_place(self.place),
            members=[] if group.name == WORLD or group.size > MOST_TOLD else group.members,
            generation=group.generation,
            oldest=None if oldest is None else oldest.unfinished(),
        )

    def unfinished(self) -> Unfinished:
        """This call as one that is not known to be complete."""
        return Unfinished(
            self.seq, self.op.name, self.nbytes, _dtype_name(self.dtype), self.issued_ns,
            self.step, format_place(self.place),
        )  # fmt: skip


def completion_of(future: Any) -> list[int]:
    """A list that will receive the time at which a future completes.

    The callback is implemented entirely in C: on the thread that completes the future it holds the
    GIL only for a moment, and on the caller's thread nothing can interrupt it.
    """
    ended: list[int] = []
    clock = iter(time.monotonic_ns, None)
    future.add_done_callback(partial(next, map(ended.append, clock)))
    return ended


class CallbackPace:
    """Decides in which steps completion callbacks are affordable.

    Steps are chosen by number alone, so ranks choose the same ones: one in each 2ⁿ steps, at
    varying positions, so that periodic events are sampled at their true rate.
    """

    def __init__(self) -> None:
        self.every = 1
        self._step = -1
        self._began_ns = 0
        self._mean_ns = 0.0
        self._calls = 0
        self._is_due = True

    def due(self, step: int, now_ns: int) -> bool:
        """Whether a call issued now gets a callback."""
        if step != self._step:
            if self._step >= 0 and step > self._step:
                self._adapt(now_ns - self._began_ns)
            self._step, self._began_ns, self._calls = step, now_ns, 0
            stretch, place = divmod(step, self.every)
            self._is_due = place == stretch * 0x9E3779B1 >> 7 & (self.every - 1)
        self._calls += 1
        return self._is_due

    def _adapt(self, since_ns: int) -> None:
        """Adapts to the time since the previous measured step, which includes skipped ones."""
        self._mean_ns += (since_ns - self._mean_ns) / (8 if self._mean_ns else 1)
        needed = self._calls * CALLBACK_NS / (COST_SHARE * max(self._mean_ns, 1.0))
        if needed > self.every:
            self.every *= 2
        elif needed < self.every / 4:
            self.every = max(1, self.every // 2)


@functools.cache
def _dtype_name(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")
