"""How much more one device holds than the others, and why; for both rules on uneven memory."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpwatch.quantiles import median
from dpwatch.run.model.snapshot import Rank
from dpwatch.wire.messages import CATEGORIES

RATIO = 1.25
LEAST_BYTES = 1 << 20
LEAST_PROCESS_BYTES = 64 << 20
"""Processes differ by what they have read and imported; smaller differences mean nothing."""

SHARED_OUT = frozenset({"params", "grads", "optimizer"})
"""Categories that sharding distributes over the ranks."""

WARNING_SHARE = 0.8
CRITICAL_SHARE = 0.9
MOSTLY = 0.5
"""A category with at least this share of the difference is the reason."""


class Uneven(msgspec.Struct, frozen=True):
    """A device that holds more than the others.

    Attributes:
        row: The device.
        own: What it holds …
        others: … and the median of the others.
        at_peak: At the peak, else between steps.
        category: Most of the difference, "" if unknown or if none is most.
        more: How many more bytes of that category it has.
    """

    row: Rank
    own: int
    others: int
    at_peak: bool
    category: str
    more: int

    @property
    def share(self) -> float:
        """How full it is, 0 without a known capacity."""
        capacity = self.row.memory.capacity_bytes
        return self.own / capacity if capacity else 0.0


def uneven(rows: Sequence[Rank], place: int) -> Uneven | None:
    """Whether this device holds much more than the others, between steps or at the peak.

    Peaks of whole processes (`rss`) are not compared: a rank may have read the data set once.
    """
    ordered = [rows[place], *rows[:place], *rows[place + 1 :]]
    if _by_process(rows):
        return _more(ordered, _held_by_processes(ordered), LEAST_PROCESS_BYTES)
    found = _more(ordered, [row.memory.current_bytes for row in ordered], LEAST_BYTES)
    if found is not None:
        return found
    return _more(ordered, [row.memory.peak_bytes for row in ordered], LEAST_BYTES, at_peak=True)


def fullest(rows: Sequence[Rank]) -> list[int]:
    """The indices of the devices that peak highest and that hold most between steps."""
    peaks = [row.memory.peak_bytes for row in rows]
    held = [row.memory.current_bytes for row in rows]
    wanted = [_held_by_processes(rows)] if _by_process(rows) else [peaks, held]
    places = [_highest(sizes) for sizes in wanted if sizes and None not in sizes]
    return list(dict.fromkeys(places))


def _highest(sizes: Sequence[int | None]) -> int:
    return max(range(len(sizes)), key=lambda i: sizes[i] or 0)


def _by_process(rows: Sequence[Rank]) -> bool:
    return any(row.memory.source == "rss" for row in rows)


def _held_by_processes(rows: Sequence[Rank]) -> list[int | None]:
    """What each holds between steps: allocated by malloc if known of all, else resident."""
    heaps = [row.memory.heap_bytes for row in rows]
    return heaps if None not in heaps else [row.memory.current_bytes for row in rows]


def why(found: Uneven) -> str:
    """The reason, and what to do about it, as sentences."""
    if found.category in SHARED_OUT:
        return (
            f"Most of the difference is {found.category}, by design: sharding by whole tensors "
            "gives this rank the largest. Shard by elements instead (fully_shard), or split that "
            "tensor."
        )
    if found.at_peak:
        return (
            "It appears only within a step: a gather or an evaluation on this rank only, longer "
            "sequences, or an uneven batch. Give all ranks the same work, or move it to the host."
        )
    return (
        "It is there between steps, so only this rank keeps it: gathered predictions, logs, an "
        "average of the weights, or a cache. Keep sums instead of tensors, or move them to disk."
    )


def _more(
    rows: Sequence[Rank], sizes: Sequence[int | None], least: int, *, at_peak: bool = False
) -> Uneven | None:
    """Whether the first of them has much more than the others."""
    if len(rows) < 2 or None in sizes:
        return None
    own, others = sizes[0] or 0, int(median(sizes[1:]) or 0)
    if own < RATIO * others or own - others < least:
        return None
    category, more = _difference(rows, at_peak=at_peak)
    if more < MOSTLY * (own - others):
        category = ""
    return Uneven(rows[0], own, others, at_peak, category, more)


def _difference(rows: Sequence[Rank], *, at_peak: bool) -> tuple[str, int]:
    """The category in which the first exceeds the others' median most."""
    more: dict[str, int] = {}
    for name in CATEGORIES:
        held = (row.memory if at_peak else row.memory.at_step_end for row in rows)
        own, *others = (getattr(each, name) for each in held)
        typical = median(others)
        if own is not None and typical is not None and own > typical:
            more[name] = int(own - typical)
    if not more:
        return "", 0
    name = max(more, key=lambda each: more[each])
    return name, more[name]
