"""Reads the durations of NCCL collectives from torch's flight recorder.

With `TORCH_NCCL_ENABLE_TIMING`, torch records an event before and after each collective's kernel,
its watchdog queries their distance, and the recorder stores it with the last 2,000 calls. No other
API of torch reports durations without waiting. A dump of the recorder holds the GIL (10 ms and
more), so:

- It is read on the sender thread, and rarely enough to cost less than a thousandth of the time.
- Never without `cuda_capture`: a dump queries the events of calls in progress, which would
  invalidate a CUDA graph that another thread is capturing.
- Never again once a collective was captured into a graph, since its events may not be queried at
  all. The caller's thread notices that before the recorder has them.
- Only with torch's event cache, which never frees an event: a dump queries events after releasing
  the recorder's lock, when the watchdog might have freed them.

Any failure turns it off for good; durations are then unknown, as they are without it. Written
against torch's source (ProcessGroupNCCL.cpp, FlightRecorderDetail.hpp).
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
from dpwatch.probe.collectives.flight_matching import EntryMatcher, ReturnedCall, decode
from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.send.recorder import RecordSink
from dpwatch.wire.messages import Duration

TIMING = "TORCH_NCCL_ENABLE_TIMING"

LEAST_GAP_NS = 10_000_000_000
COST_FACTOR = 1_000
"""The next dump is not taken before this multiple of what the last one cost."""

MOST_DUMP_NS = 100_000_000
"""Limit of CPU time per dump; one that takes more is the last."""

MOST_ENTRIES = 5_000
"""Limit of entries; a larger recorder is not read, as each entry holds the GIL for 10–20 µs."""

MOST_CALLS = 8_192
MOST_SHIFT_NS = 20_000
"""If the wall clock was set by more than this between two dumps, calls cannot be matched."""

_OLDEST = (2, 7)
"""torch's event cache is on by default, and correct, since this version."""

_TRUE = {"y", "yes", "1", "t", "true"}
_FALSE = {"n", "no", "0", "f", "false"}


class Obstacle(NamedTuple):
    """Why durations are not read, and what to set to change that ("" if nothing helps)."""

    why: str
    advice: str = ""


class ReturnedCalls:
    """NCCL calls that have returned. Filled on the callers' threads, read on the sender thread.

    Attributes:
        captured: A collective was issued while its stream was being captured into a CUDA graph.
    """

    __slots__ = ("captured", "returned")

    def __init__(self) -> None:
        self.captured = False
        self.returned: deque[tuple[Any, ...]] = deque(maxlen=MOST_CALLS)

    def note_capture(self) -> None:
        """Notes whether the collective that this thread is about to issue is being captured.

        Raises:
            Exception: Raised by one of the script's signal handlers meanwhile.
        """
        if self.captured:
            return
        cuda: Any = torch.cuda
        try:
            self.captured = cuda.is_initialized() and cuda.is_current_stream_capturing()
        except Exception as error:
            if is_foreign(error):
                raise
            self.captured = True  # unknown, so assume it


class FlightSource(Protocol):
    """The parts of torch and CUDA that are used; tests replace them."""

    def usable(self) -> bool:
        """Whether there are process groups now."""

    def guard(self) -> AbstractContextManager[None]:
        """Within the block this thread may query events. Raises if it may not."""

    def dump(self) -> bytes:
        """All entries as JSON, without stack traces."""

    def wall_less_mono_ns(self) -> int:
        """The wall clock minus the monotonic one."""


class NcclRecorder:
    """torch's flight recorder for NCCL. Created and used on the sender thread."""

    def __init__(self, ordinal: int) -> None:
        """Finds the functions it needs.

        Args:
            ordinal: A CUDA device that this process uses; on another one, querying an event
                could create an unwanted context.

        Raises:
            NoCaptureMode: The capture mode cannot be changed here.
            AttributeError: This torch has no such recorder.
        """
        self._dump = _dump_function()
        self._mode = cuda_capture.find()
        torch.cuda.set_device(ordinal)  # of this thread only

    def usable(self) -> bool:
        """See `FlightSource`."""
        return dist.is_initialized()

    def guard(self) -> AbstractContextManager[None]:
        """See `FlightSource`."""
        return self._mode.thread_local()

    def dump(self) -> bytes:
        """See `FlightSource`."""
        told: bytes = self._dump(includeCollectives=True, onlyActive=False)
        return told

    def wall_less_mono_ns(self) -> int:
        """See `FlightSource`; the best of several readings."""
        looks = []
        for _ in range(5):
            before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
            looks.append((after - before, wall - (before + after) // 2))
        return min(looks)[1]


class Flight:
    """Reads the recorder when due, and records `Duration`. On the sender thread.

    Attributes:
        note: Why it stopped, "" while it reads.
    """

    def __init__(
        self,
        calls: ReturnedCalls,
        record: RecordSink,
        recorder: FlightSource,
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
        self._open: list[ReturnedCall] = []
        self._shift_ns = recorder.wall_less_mono_ns()
        self._next = now_ns + LEAST_GAP_NS

    def poll(self, now_ns: int) -> None:
        """Reads the recorder if that is due. Never raises."""
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
            # Nothing may run between this check and the dump.
            dump = b"" if self._calls.captured else self._recorder.dump()
        if not dump:
            self._stop("collectives are captured into a CUDA graph")
            return
        # The dump's whole wall time counts: it holds the GIL even while it waits for a lock.
        held_ns, dump_ns = self._wall() - wall, self._cpu() - cpu
        self._record_durations(dump)
        cost_ns = max(held_ns, self._cpu() - cpu)
        self._next = now_ns + max(LEAST_GAP_NS, COST_FACTOR * cost_ns)
        if dump_ns > MOST_DUMP_NS:
            self._stop(f"a dump of the flight recorder took {dump_ns // 1_000_000} ms")

    def _record_durations(self, dump: bytes) -> None:
        entries = decode(dump)
        returned = self._calls.returned
        fresh = [ReturnedCall(*returned.popleft()) for _ in range(len(returned))]
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


def start(calls: ReturnedCalls, record: RecordSink, ordinal: int, now_ns: int) -> Flight | None:
    """Starts reading the recorder. On the sender thread.

    Args:
        calls: The process's calls.
        record: Takes `(Duration, step, op, …)`.
        ordinal: A CUDA device that this process uses.
        now_ns: Monotonic time.

    Returns:
        The reader, None if durations cannot be read (`obstacle` says why).
    """
    if obstacle(os.environ) is not None:
        return None
    try:
        return Flight(calls, record, NcclRecorder(ordinal), now_ns=now_ns)
    except Exception:  # noqa: BLE001 - whatever torch or CUDA raise
        return None


def calls_to_keep(env: Mapping[str, str]) -> ReturnedCalls | None:
    """Where to keep calls if the environment enables durations, None if it does not."""
    return ReturnedCalls() if _unset(env) is None else None


def obstacle(env: Mapping[str, str]) -> Obstacle | None:
    """What prevents reading durations in this process, None if nothing does."""
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
    """Whether the first of these variables that is set has one of the values."""
    said = next((env[name] for name in names if name in env), "")
    return said.lower() in values


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _dump_function() -> Callable[..., Any]:
    found: Callable[..., Any] = torch._C._distributed_c10d._dump_nccl_trace_json  # type: ignore[attr-defined]
    return found
