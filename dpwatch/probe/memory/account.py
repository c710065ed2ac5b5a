"""Sums a step's memory events: bytes by device and category, at the end and at the peak.

A storage's category is decided as late as possible, when its whole life in the step is known:

- found by walking after the step (params, grads, optimizer, buffers), otherwise written by an
  all-gather (gathered) or passed to a reduction (buffers): that category;
- allocated outside backward and alive when backward began: activations (saved for backward);
- allocated in backward on a device other than 0, which has no modules to walk, and alive after it:
  grads (of the device's replica);
- DDP's gradient buckets, and what existed before the step and is none of the above: buffers;
- the rest: temp.

So at the peak, memory that later turns out to be a gradient counts as one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from dpwatch.probe.memory.events import BackwardMark, Entry, Event
from dpwatch.wire.messages import CATEGORIES, ByCategory


@dataclass(kw_only=True, slots=True, frozen=True)
class Usage:
    """A device's bytes over one step; the categories sum to the totals exactly."""

    current_bytes: int
    peak_bytes: int
    current: ByCategory
    peak: ByCategory


@dataclass(slots=True)
class _Device:
    total: int = 0
    peak: int = 0
    peak_at: int = 0
    backward_begins: list[int] = field(default_factory=list)
    backward_ends: list[int] = field(default_factory=list)


def account(events: Sequence[Event]) -> dict[int, Usage]:
    """Sums a step's events.

    Args:
        events: In time order, starting with what was alive before the step.

    Returns:
        Usage of every device that held anything.
    """
    devices, born, died = _scan(events)
    current: dict[int, dict[str, int]] = {index: {} for index in devices}
    peak: dict[int, dict[str, int]] = {index: {} for index in devices}
    categories: dict[Entry, str] = {}
    for at, (entry, delta) in enumerate(events):
        if isinstance(entry, BackwardMark):
            continue
        device = devices[entry.device]
        category = categories.get(entry)
        if category is None:
            category = _category(entry, device, born[entry], died.get(entry))
            categories[entry] = category
        held = current[entry.device]
        held[category] = held.get(category, 0) + delta
        if at == device.peak_at:
            peak[entry.device] = dict(held)
    return {
        index: Usage(
            current_bytes=device.total,
            peak_bytes=device.peak,
            current=_by_category(current[index]),
            peak=_by_category(peak[index]),
        )
        for index, device in devices.items()
    }


def _scan(
    events: Sequence[Event],
) -> tuple[dict[int, _Device], dict[Entry, int], dict[Entry, int]]:
    """Finds each device's peak, and where each storage was allocated and freed in `events`."""
    devices: dict[int, _Device] = {}
    born: dict[Entry, int] = {}
    died: dict[Entry, int] = {}
    for at, (subject, delta) in enumerate(events):
        device = devices.get(subject.device)
        if device is None:
            device = devices[subject.device] = _Device(peak_at=at)
        if isinstance(subject, BackwardMark):
            (device.backward_begins if subject.begins else device.backward_ends).append(at)
            continue
        born.setdefault(subject, at)
        if subject.ref is None and delta < 0:
            died[subject] = at
        device.total += delta
        if device.total > device.peak:
            device.peak, device.peak_at = device.total, at
    return devices, born, died


def _category(entry: Entry, device: _Device, born: int, died: int | None) -> str:
    if entry.category is not None:
        return entry.category
    if entry.bucket or entry.carried:
        return "buffers"
    if entry.in_backward:
        kept = entry.device != 0 and _outlives(device.backward_ends, born, died)
        return "grads" if kept else "temp"
    return "activations" if _outlives(device.backward_begins, born, died) else "temp"


def _outlives(marks: list[int], born: int, died: int | None) -> bool:
    """Whether one of the marks lies within the life of a storage."""
    following = bisect_right(marks, born)
    return following < len(marks) and (died is None or died > marks[following])


def _by_category(held: dict[str, int]) -> ByCategory:
    return ByCategory(**{category: held.get(category, 0) for category in CATEGORIES})
