"""How long NCCL's collectives take, read from torch's flight recorder where it knows.

With `TORCH_NCCL_ENABLE_TIMING` torch records an event before each collective's kernel and one after
it, its watchdog asks for their distance, and the recorder keeps that with the last 2,000 calls.
Nothing else in torch tells it without waiting. A dump of them holds the GIL (10 ms and more), so:

- It is read on the sender thread, and so seldom that this is under a thousandth of the time.
- Never without `cuda_capture`: a dump asks about the events of what is still under way, which
  would break a CUDA graph that another thread captures.
- Never again once a collective was captured into a graph itself, as its events may not be asked
  about at all. The caller's thread notices, before the recorder has them.
- Only with torch's cache of events, which never frees one: a dump asks after it has let go of the
  recorder's lock, and the watchdog might have freed the event meanwhile.

What goes wrong turns it off for good; durations are unknown then, as they are without it.
Written against torch's source (ProcessGroupNCCL.cpp, FlightRecorderDetail.hpp).
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from dpwatch.probe.collectives import cuda_capture
from dpwatch.probe.collectives.flight_matching import Call, EntryMatcher, decode
from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.send.recorder import RecordSink
from dpwatch.wire.messages import Duration

TIMING = "TORCH_NCCL_ENABLE_TIMING"

LEAST_GAP_NS = 10_000_000_000
COST_FACTOR = 1_000
"""The next dump comes no sooner than this many times what the last one cost."""

MOST_DUMP_NS = 100_000_000
"""Of CPU time. A dump that takes more is the last one."""

MOST_ENTRIES = 5_000
"""A recorder that keeps more is not read: 10–20 µs of GIL each."""

MOST_CALLS = 8_192
MOST_SHIFT_NS = 20_000
"""A wall clock that was set by more than this between two dumps leaves calls without a place."""

_OLDEST = (2, 7)
"""torch's cache of events is on by default, and sound, since this version."""

_TRUE = {"y", "yes", "1", "t", "true"}
_FALSE = {"n", "no", "0", "f", "false"}


class Obstacle(NamedTuple):
    """Why durations are not read, and what to set so that they are, "" where nothing helps."""

    why: str
    advice: str = ""


class Calls:
    """NCCL calls that have returned. Filled on the callers' threads, read on the sender's.

    Attributes:
        captured: A collective was issued while its stream was being captured into a CUDA graph.
    """

    __slots__ = ("captured", "returned")

    def __init__(self) -> None:
        self.captured = False
        self.returned: deque[tuple[Any, ...]] = deque(maxlen=MOST_CALLS)

    def note_capture(self) -> None:
        """A collective is about to be issued by this thread.

        Raises:
            Exception: What a signal handler of the script's raised meanwhile.
        """
        if self.captured:
            return
        cuda: Any = torch.cuda
        try:
            self.captured = cuda.is_initialized() and cuda.is_current_stream_capturing()
        except Exception as error:
            if is_foreign(error):
                raise
            self.captured = True  # what is unknown may be so


class Recorder(Protocol):
    """What is used of torch and CUDA; tests have their own."""

    def usable(self) -> bool:
        """Whether there are process groups now."""

    def guard(self) -> AbstractContextManager[None]:
        """Within it this thread may ask about events. Raises where it may not."""

    def dump(self) -> bytes:
        """All entries, in JSON, without stack traces."""

    def wall_less_mono_ns(self) -> int:
        """The wall clock less the monotonic one."""


class NcclRecorder:
    """torch's flight recorder of NCCL. Made and used on the sender thread."""

    def __init__(self, ordinal: int) -> None:
        """Finds what it takes.

        Args:
            ordinal: A CUDA device that this process uses; on another one, asking about an event
                could make a context that nobody wants.

        Raises:
            NoCaptureMode: The capture mode can't be changed here.
            AttributeError: This torch has no such recorder.
        """
        self._dump = _dump_function()
        self._mode = cuda_capture.find()
        torch.cuda.set_device(ordinal)  # of this thread only

    def usable(self) -> bool:
        """See `Recorder`."""
        return dist.is_initialized()

    def guard(self) -> AbstractContextManager[None]:
        """See `Recorder`."""
        return self._mode.thread_local()

    def dump(self) -> bytes:
        """See `Recorder`."""
        told: bytes = self._dump(includeCollectives=True, onlyActive=False)
        return told

    def wall_less_mono_ns(self) -> int:
        """See `Recorder`; the closest of a few looks."""
        looks = []
        for _ in range(5):
            before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
            looks.append((after - before, wall - (before + after) // 2))
        return min(looks)[1]


class Flight:
    """Reads the recorder when that is due, and records `Duration`. On the sender thread.

    Attributes:
        note: Why it stopped, "" while it reads.
    """

    def __init__(
        self,
        calls: Calls,
        record: RecordSink,
        recorder: Recorder,
        *,
        now_ns: int,
        wall: Callable[[], int] = time.monotonic_ns,
        cpu: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self.note = ""
        self._calls = calls
        self._record = record
        self._recorder = recorder
        self._wall = wall
        self._cpu = cpu
        self._matcher = EntryMatcher()
        self._open: list[Call] = []
        self._shift_ns = recorder.wall_less_mono_ns()
        self._next = now_ns + LEAST_GAP_NS

    def poll(self, now_ns: int) -> None:
        """Reads if that is due. Never raises."""
        if self.note or now_ns < self._next:
            return
        try:
            if self._recorder.usable():
                self._read(now_ns)
        except Exception as error:  # noqa: BLE001 - private names and formats: any may differ
            self._stop(f"{type(error).__name__}: {error}")

    def _read(self, now_ns: int) -> None:
        wall, cpu = self._wall(), self._cpu()
        with self._recorder.guard():
            # Nothing may come between this question and the dump.
            dump = b"" if self._calls.captured else self._recorder.dump()
        if not dump:
            self._stop("collectives are captured into a CUDA graph")
            return
        # All of the dump's wall time counts: it holds the GIL while it waits for a lock, too.
        held_ns, dump_ns = self._wall() - wall, self._cpu() - cpu
        self._record_durations(dump)
        cost_ns = max(held_ns, self._cpu() - cpu)
        self._next = now_ns + max(LEAST_GAP_NS, COST_FACTOR * cost_ns)
        if dump_ns > MOST_DUMP_NS:
            self._stop(f"a dump of the flight recorder took {dump_ns // 1_000_000} ms")

    def _record_durations(self, dump: bytes) -> None:
        entries = decode(dump)
        returned = self._calls.returned
        fresh = [Call(*returned.popleft()) for _ in range(len(returned))]
        self._open = [*self._open, *fresh][-MOST_CALLS:]
        before, self._shift_ns = self._shift_ns, self._recorder.wall_less_mono_ns()
        if abs(self._shift_ns - before) > MOST_SHIFT_NS:
            self._matcher.discard(entries)
            self._open.clear()
            return
        told = self._matcher.durations(entries, self._open, self._shift_ns)
        for call, duration_ns in told:
            self._record(
                (Duration, call.step, call.op, call.group, call.ranks, call.seq, call.nbytes,
                 duration_ns, call.device)
            )  # fmt: skip
        over = {call for call, _ in told}
        self._open = [call for call in self._open if call not in over]

    def _stop(self, why: str) -> None:
        self.note = why
        self._open.clear()


def start(calls: Calls, record: RecordSink, ordinal: int, now_ns: int) -> Flight | None:
    """Begins to read the recorder. On the sender thread.

    Args:
        calls: Where the process's calls are kept.
        record: Takes `(Duration, step, op, …)`.
        ordinal: A CUDA device that this process uses.
        now_ns: Monotonic time.

    Returns:
        The reader, None where durations can't be read (`obstacle` says why).
    """
    if obstacle(os.environ) is not None:
        return None
    try:
        return Flight(calls, record, NcclRecorder(ordinal), now_ns=now_ns)
    except Exception:  # noqa: BLE001 - whatever torch or CUDA say against it
        return None


def calls_to_keep(env: Mapping[str, str]) -> Calls | None:
    """Where to keep calls if the environment asks for durations, None if it doesn't."""
    return Calls() if _unset(env) is None else None


def obstacle(env: Mapping[str, str]) -> Obstacle | None:
    """What keeps durations from being read in this process, None if nothing does."""
    found = _unset(env)
    if found is not None:
        return found
    if _version(str(torch.__version__)) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        return Obstacle(f"torch {torch.__version__} is too old for it", f"use torch {needed}")
    try:
        _dump_function()
        cuda_capture.find()
    except AttributeError:
        return Obstacle("this torch has no flight recorder of NCCL")
    except cuda_capture.NoCaptureMode as error:
        return Obstacle(str(error))
    return None


def _unset(env: Mapping[str, str]) -> Obstacle | None:
    """What the environment lacks; names and defaults are torch's."""
    if not _is(env, _TRUE, TIMING, "NCCL_ENABLE_TIMING"):
        return Obstacle(f"{TIMING} is not set", f"set {TIMING}=1 where training is started")
    size = env.get("TORCH_FR_BUFFER_SIZE", env.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"))
    if not size.isdecimal() or int(size) == 0:
        return Obstacle(f"the flight recorder is off (size {size})", "unset TORCH_FR_BUFFER_SIZE")
    if int(size) > MOST_ENTRIES:
        why = f"a flight recorder of {size} entries takes too long to read"
        return Obstacle(why, "set TORCH_FR_BUFFER_SIZE=2000")
    if _is(env, _TRUE, "TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):
        why = "with TORCH_NCCL_BLOCKING_WAIT torch takes no durations"
        return Obstacle(why, "unset TORCH_NCCL_BLOCKING_WAIT")
    if _is(env, _FALSE, "TORCH_NCCL_CUDA_EVENT_CACHE"):
        why = "without TORCH_NCCL_CUDA_EVENT_CACHE reading them is not safe"
        return Obstacle(why, "unset TORCH_NCCL_CUDA_EVENT_CACHE")
    return None


def _is(env: Mapping[str, str], values: set[str], *names: str) -> bool:
    """Whether the first of these that is set has one of the values."""
    said = next((env[name] for name in names if name in env), "")
    return said.lower() in values


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _dump_function() -> Callable[..., Any]:
    found: Callable[..., Any] = torch._C._distributed_c10d._dump_nccl_trace_json  # type: ignore[attr-defined]
    return found
