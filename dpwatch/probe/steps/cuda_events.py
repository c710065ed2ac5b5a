"""Times phases on a CUDA device with events on its stream, without ever waiting for them.

Kernels are queued, so a phase's wall time is only the time to queue it. In measured steps, a
`torch.cuda.Event(enable_timing=True)` is recorded on the current stream where a phase begins and
where it ends. At the ends of later steps, `query` tells which events have completed, and
`elapsed_time`, which then does not wait, gives their distance. Until that is known, or `KEPT_STEPS`
later steps have ended, the step's record is held back.
(https://docs.pytorch.org/docs/stable/generated/torch.cuda.Event.html)

All of this happens on the training thread. The sender thread could query too, but while a CUDA
graph is being captured (by default with `capture_error_mode="global"`) a query from any thread
breaks the capture, and only the capturing thread can tell that one is in progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from dpwatch.probe.foreign import own_fault
from dpwatch.probe.send.recorder import RecordSink
from dpwatch.probe.steps.step_record import UNKNOWN_PHASES
from dpwatch.wire.messages import DeviceInfo

KEPT_STEPS = 16
"""Number of later steps that a record waits for its events; the host is rarely that far ahead."""

MOST_SPANS = 32
"""Phases timed per step. A phase entered more often (long accumulation) is unknown in that step."""


_parents: list[DeviceTimes] = []
"""Kept forever, see `abandon`."""


class EventLayer(Protocol):
    """The part of `torch.cuda` that is used; tests replace it."""

    def usable(self) -> bool:
        """Whether events may be recorded and queried now."""

    def make(self) -> Any:
        """A new event, with `query()` and `elapsed_time(end)` in milliseconds."""

    def record(self, event: Any) -> None:
        """Records an event on the current stream."""


class CudaEvents:
    """Events on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def usable(self) -> bool:
        """See `EventLayer`; not before CUDA is initialized, nor during a graph capture."""
        return bool(
            torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            and not torch.cuda.is_current_stream_capturing()
        )

    def make(self) -> Any:
        """See `EventLayer`."""
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def record(self, event: Any) -> None:
        """See `EventLayer`."""
        event.record(torch.cuda.current_stream(self._device))


class _Step(NamedTuple):
    """A step whose record is held back."""

    record: tuple[Any, ...]
    spans: list[tuple[int, Any, Any]]
    lost: int


class DeviceTimes:
    """Times the main lane's phases on its device. On the training thread; never raises.

    Attributes:
        note: Why it stopped, "" while it works. Phases are unknown from then on.
    """

    def __init__(self, emit: RecordSink, events: EventLayer) -> None:
        """Prepares; makes no event yet.

        Args:
            emit: Takes a step's record, with the phases' nanoseconds on the device at its end.
            events: Where events come from.
        """
        self.note = ""
        self._emit = emit
        self._events = events
        self._pool: list[Any] = []
        self._begun: tuple[int, Any] | None = None
        self._spans: list[tuple[int, Any, Any]] = []
        self._lost = 0
        self._held: deque[_Step] = deque()

    def phase_begins(self, phase: int) -> None:
        """The outermost phase begins, in a measured step."""
        if self._begun is not None:
            self.interrupt()
        event = self._recorded()
        if event is not None:
            self._begun = (phase, event)

    def phase_ends(self, phase: int) -> None:
        """The phase ends."""
        end = None if self._begun is None else self._recorded()
        if self._begun is None or end is None:
            self.interrupt()
            self._lost |= 1 << phase
        else:
            self._spans.append((phase, self._begun[1], end))
            self._begun = None

    def interrupt(self) -> None:
        """The current phase ends unannounced, or its thread leaves the device."""
        if self._begun is not None:
            phase, event = self._begun
            self._begun = None
            self._lost |= 1 << phase
            self._pool.append(event)

    def step_ends(self, record: tuple[Any, ...]) -> None:
        """A step ends.

        Args:
            record: Its record without device times; phases that were not timed are unknown.
        """
        spans, self._spans = self._spans, []
        lost, self._lost = self._lost, 0
        self._held.append(_Step(record, spans, lost))
        self._emit_ready(len(self._held) - 1)  # its own events can hardly be complete

    def close(self, *, ask: bool) -> None:
        """Emits all records, with what is known by now.

        Args:
            ask: Whether events may be queried once more: on the training thread only.
        """
        if ask:
            self._emit_ready(len(self._held))
        self.note = self.note or "closed"
        self._emit_ready(len(self._held))
        self._pool.clear()

    def abandon(self) -> None:
        """In a forked child: keeps the parent's events, since even destroying them calls CUDA."""
        _parents.append(self)

    def _recorded(self) -> Any:
        """An event recorded just now, None if that is not possible."""
        if self.note or len(self._spans) >= MOST_SPANS:
            return None
        try:
            if not self._events.usable():
                return None
            event = self._pool.pop() if self._pool else self._events.make()
            self._events.record(event)
        except Exception as error:  # noqa: BLE001 - an error of the user's kernels may surface here
            own_fault(error, self._stop)
            return None
        return event

    def _emit_ready(self, most: int) -> None:
        """Emits those of the `most` oldest steps that are known or have waited too long."""
        usable: bool | None = None
        for _ in range(most):
            step = self._held[0]
            known: Sequence[int | None] | None = UNKNOWN_PHASES
            if step.spans and not self.note:
                if usable is None:
                    usable = self._ask(self._events.usable)
                known = self._ask(partial(_times, step)) if usable else None
                if known is None and not self.note and len(self._held) <= KEPT_STEPS:
                    return  # later ones are not ready either
            self._held.popleft()
            for _, begin, end in step.spans:
                self._pool += (begin, end)  # even one that never completed can be recorded again
            self._emit((*step.record, known or UNKNOWN_PHASES))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # noqa: BLE001
            own_fault(error, self._stop)
            return None

    def _stop(self, error: BaseException) -> None:
        self.note = f"{type(error).__name__}: {error}"


def start(emit: RecordSink, devices: Sequence[DeviceInfo]) -> DeviceTimes | None:
    """Device times for the first device, None if it is not a CUDA device that torch knows."""
    if not devices or devices[0].kind != "cuda":
        return None
    try:
        device = torch.device(devices[0].name)
    except RuntimeError:  # a name of the script's own
        return None
    return DeviceTimes(emit, CudaEvents(device))


def _times(step: _Step) -> list[int | None] | None:
    """Nanoseconds by phase, None until all events have completed."""
    if not all(end.query() and begin.query() for _, begin, end in reversed(step.spans)):
        return None
    times: list[int | None] = list(UNKNOWN_PHASES)
    for phase, begin, end in step.spans:
        if not step.lost >> phase & 1:
            times[phase] = (times[phase] or 0) + round(begin.elapsed_time(end) * 1e6)
    return times
