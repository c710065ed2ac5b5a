"""How long phases take on a CUDA device: events on its stream, asked about later, never waited for.

Kernels are queued, so what the wall clock says of a phase is how long the queueing took. On steps
that are measured, a `torch.cuda.Event(enable_timing=True)` is recorded on the current stream where
a phase begins and where it ends. At the ends of later steps the events are asked whether they have
come (`query`), and those that have give their distance (`elapsed_time`, which does not wait then).
Until that is known, or `KEPT_STEPS` later steps have ended, the step's record is held back.
(https://docs.pytorch.org/docs/stable/generated/torch.cuda.Event.html)

All of it on the training thread. The sender thread might ask as well, but while a CUDA graph is
being captured (by default with `capture_error_mode="global"`) a question from any thread breaks the
capture, and only the capturing thread can tell that one is under way.
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
"""How many later steps a step's record waits for its events; the host is seldom so far ahead."""

MOST_SPANS = 32
"""In a step. A phase that is entered more often (long accumulation) is unknown in that step."""


_parents: list[DeviceTimes] = []
"""Kept for ever, see `abandon`."""


class EventLayer(Protocol):
    """What is used of `torch.cuda`; tests have their own."""

    def usable(self) -> bool:
        """Whether events may be recorded and asked now."""

    def make(self) -> Any:
        """A new event, with `query()` and `elapsed_time(end)` in milliseconds."""

    def record(self, event: Any) -> None:
        """Records it on the current stream."""


class CudaEvents:
    """Events of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def usable(self) -> bool:
        """See `EventLayer`: nothing before CUDA is in use, nor while a graph is captured."""
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
    """Times the main lane's phases on its device. On the training thread, and never raises.

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
        """The outermost phase begins, on a step that is measured."""
        if self._begun is not None:
            self.interrupt()
        event = self._recorded()
        if event is not None:
            self._begun = (phase, event)

    def phase_ends(self, phase: int) -> None:
        """It ends."""
        end = None if self._begun is None else self._recorded()
        if self._begun is None or end is None:
            self.interrupt()
            self._lost |= 1 << phase
        else:
            self._spans.append((phase, self._begun[1], end))
            self._begun = None

    def interrupt(self) -> None:
        """The phase under way ends without being told, or its thread leaves the device."""
        if self._begun is not None:
            phase, event = self._begun
            self._begun = None
            self._lost |= 1 << phase
            self._pool.append(event)

    def step_ends(self, record: tuple[Any, ...]) -> None:
        """A step ends.

        Args:
            record: Its record, without the device's times; those of phases not timed are unknown.
        """
        spans, self._spans = self._spans, []
        lost, self._lost = self._lost, 0
        self._held.append(_Step(record, spans, lost))
        self._emit_ready(len(self._held) - 1)  # its own events can hardly have come

    def close(self, *, ask: bool) -> None:
        """Sends all records on, with what is known by now.

        Args:
            ask: Whether events may be asked once more: on the training thread only.
        """
        if ask:
            self._emit_ready(len(self._held))
        self.note = self.note or "closed"
        self._emit_ready(len(self._held))
        self._pool.clear()

    def abandon(self) -> None:
        """In a forked child: the events are its parent's, and even to destroy them asks CUDA."""
        _parents.append(self)

    def _recorded(self) -> Any:
        """An event recorded just now, None where that is not possible."""
        if self.note or len(self._spans) >= MOST_SPANS:
            return None
        try:
            if not self._events.usable():
                return None
            event = self._pool.pop() if self._pool else self._events.make()
            self._events.record(event)
        except Exception as error:  # noqa: BLE001 - one of the user's kernels' may come out here
            own_fault(error, self._stop)
            return None
        return event

    def _emit_ready(self, most: int) -> None:
        """Sends on what is known, or has waited for too long, of the oldest so many steps."""
        usable: bool | None = None
        for _ in range(most):
            step = self._held[0]
            known: Sequence[int | None] | None = UNKNOWN_PHASES
            if step.spans and not self.note:
                if usable is None:
                    usable = self._ask(self._events.usable)
                known = self._ask(partial(_times, step)) if usable else None
                if known is None and not self.note and len(self._held) <= KEPT_STEPS:
                    return  # those after it come later still
            self._held.popleft()
            for _, begin, end in step.spans:
                self._pool += (begin, end)  # one that never came may be recorded anew as well
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
    """Device times for the first device, None where it is no CUDA device that torch knows."""
    if not devices or devices[0].kind != "cuda":
        return None
    try:
        device = torch.device(devices[0].name)
    except RuntimeError:  # a name that the script made up
        return None
    return DeviceTimes(emit, CudaEvents(device))


def _times(step: _Step) -> list[int | None] | None:
    """Nanoseconds by phase, None before all events have come."""
    if not all(end.query() and begin.query() for _, begin, end in reversed(step.spans)):
        return None
    times: list[int | None] = list(UNKNOWN_PHASES)
    for phase, begin, end in step.spans:
        if not step.lost >> phase & 1:
            times[phase] = (times[phase] or 0) + round(begin.elapsed_time(end) * 1e6)
    return times
