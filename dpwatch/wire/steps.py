"""Packs many steps into one record, as `calls` does with collectives."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges as r
from dpwatch.wire.calls import EARLIEST_NS, UNKNOWN, encode_unknown
from dpwatch.wire.record import Record

MOST_STEPS = 256
"""Steps in one record."""

ROW = struct.Struct("<15I")


class Step(Record, frozen=True, gc=False, tag="step"):
    """One training step as one device saw it.

    Phases are wall time inside the step; what remains of `end_ns - start_ns` is `other`. On a CUDA
    device, all phases but `data_ns` are device time, in steps where it was measured. The four
    thread times divide the wall time by what the device's thread was doing; if all are known, they
    sum to the step.

    Attributes:
        device: Index into `Hello.devices`.
        step: Counts optimizer steps from 0.
        start_ns: End of the previous step (for the first step: its first event).
        end_ns: End of the optimizer step.
        data_ns: Waiting for the next batch.
        h2d_ns: Copying the batch to the device.
        forward_ns: In the outermost module (with `dp` on device 0: scatter … gather).
        backward_ns: In backward (with `dp` on device 0: scatter of output gradients … reduce).
        optimizer_ns: In the optimizer's step.
        on_cpu_ns: The thread was running.
        runqueue_ns: The thread was ready, but no core was free.
        gil_wait_ns: The thread was blocked where only the GIL can block it.
        idle_ns: The thread was blocked otherwise: waiting for data, another device or another rank.
        exposed_ns: Communication not overlapped with compute: wall time of the calls and waits that
            Python sees, and blocked time where C++ waits.
        loss: The rank's own loss in this step (mean over its samples).
        samples: Batch elements this device processed in the step.
        comm_ns: Time during which at least one communication of the device was in progress, from
            issue to completion. None if some call's completion is unknown.
    """

    device: r.Index
    step: r.Step
    start_ns: r.Instant
    end_ns: r.Instant
    data_ns: r.Duration | None = None
    h2d_ns: r.Duration | None = None
    forward_ns: r.Duration | None = None
    backward_ns: r.Duration | None = None
    optimizer_ns: r.Duration | None = None
    on_cpu_ns: r.Duration | None = None
    runqueue_ns: r.Duration | None = None
    gil_wait_ns: r.Duration | None = None
    idle_ns: r.Duration | None = None
    exposed_ns: r.Duration | None = None
    loss: float | None = None
    samples: r.Count | None = None
    comm_ns: r.Duration | None = None


class Steps(Record, frozen=True, gc=False, tag="steps"):
    """Steps of one device, in the order it would send them separately.

    A row is fifteen little-endian 32-bit numbers: the step relative to this record's; the time from
    its end to `latest_ns`; its duration; then `data_ns` … `exposed_ns`, `comm_ns` and `samples` as
    in `Step`. From `data_ns` on they may be unknown (2³² - 1).

    Attributes:
        step: The lowest step number.
        latest_ns: No step ended after this.
        rows: One row per step.
        losses: One loss per step; empty if none is known.
    """

    device: r.Index
    step: r.Step
    latest_ns: r.Instant
    rows: Annotated[bytes, Meta(min_length=ROW.size, max_length=MOST_STEPS * ROW.size)]
    losses: Annotated[list[float | None], Meta(max_length=MOST_STEPS)] = msgspec.field(
        default_factory=list
    )

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.rows) // ROW.size


def fault(steps: Steps, latest_ns: int) -> str:
    """What is wrong with a record, "" if it is valid."""
    if len(steps.rows) % ROW.size or len(steps.losses) not in (0, steps.count):
        return "have not a row each"
    if steps.latest_ns > latest_ns:
        return "end in the future"
    return "lie too far back" if steps.latest_ns < EARLIEST_NS else ""


def unpack(steps: Steps) -> Iterator[Step]:
    """Yields each step as a `Step`."""
    losses = steps.losses or [None] * steps.count
    for row, loss in zip(ROW.iter_unpack(steps.rows), losses, strict=True):
        step, ago, took = row[:3]
        *times, comm, samples = (None if number == UNKNOWN else number for number in row[3:])
        end_ns = steps.latest_ns - ago
        told = (*times, loss, samples, comm)
        yield Step(steps.device, steps.step + step, end_ns - took, end_ns, *told)  # type: ignore[arg-type]


def pack(steps: Sequence[Step]) -> list[Steps | Step]:
    """Packs steps into as few records as possible, keeping the order within each device."""
    devices: dict[int, list[Step]] = {}
    for step in steps:
        devices.setdefault(step.device, []).append(step)
    return [
        record
        for of_device in devices.values()
        for at in range(0, len(of_device), MOST_STEPS)
        for record in _pack_device(of_device[at : at + MOST_STEPS])
    ]


def _pack_device(steps: list[Step]) -> list[Steps | Step]:
    least = min([each.step for each in steps])
    latest_ns = max([each.end_ns for each in steps])
    if len(steps) < 2 or latest_ns < EARLIEST_NS:
        return [*steps]
    alike = _pack_columns(steps, least, latest_ns)
    if alike is not None:
        return [alike]
    rows = bytearray()
    losses: list[float | None] = []
    alone: list[Steps | Step] = []
    for step in steps:
        row = _row(step, least, latest_ns)
        if row is None:
            alone.append(step)
        else:
            rows += row
            losses.append(step.loss)
    if not rows:
        return alone
    told = losses if any(loss is not None for loss in losses) else []
    return [Steps(steps[0].device, least, latest_ns, bytes(rows), told), *alone]


def _pack_columns(steps: list[Step], least: int, latest_ns: int) -> Steps | None:
    """Packs all steps into one record, column by column; None if some do not fit."""
    _, step, start, end, *times, loss, samples, comm = zip(
        *map(msgspec.structs.astuple, steps), strict=True
    )
    times += [comm, samples]
    if any(UNKNOWN in each for each in times):
        return None
    rows = zip(
        [n - least for n in step],
        [latest_ns - ns for ns in end],
        [e - s for s, e in zip(start, end, strict=True)],
        *map(encode_unknown, times),
        strict=True,
    )
    try:
        packed = struct.pack(f"<{15 * len(steps)}I", *chain.from_iterable(rows))
    except struct.error:  # a number of more than 32 bits, or below 0
        return None
    told = [] if loss.count(None) == len(loss) else list(loss)
    return Steps(steps[0].device, least, latest_ns, packed, told)


def _row(step: Step, least: int, latest_ns: int) -> bytes | None:
    """The row of a step, None if it does not fit."""
    times = (
        step.data_ns, step.h2d_ns, step.forward_ns, step.backward_ns, step.optimizer_ns,
        step.on_cpu_ns, step.runqueue_ns, step.gil_wait_ns, step.idle_ns, step.exposed_ns,
        step.comm_ns, step.samples,
    )  # fmt: skip
    if UNKNOWN in times:
        return None
    known = times if None not in times else [UNKNOWN if n is None else n for n in times]
    try:
        return ROW.pack(
            step.step - least, latest_ns - step.end_ns, step.end_ns - step.start_ns, *known
        )
    except struct.error:  # a number of more than 32 bits, or below 0
        return None
