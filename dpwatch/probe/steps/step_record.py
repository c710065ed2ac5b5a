"""A lane's sums over one step, and the record they make.

The training thread only adds into a flat list and hands it over; `step_record` runs on the sender
thread. Python that ran a step ago is out of the processor's caches, so that each function the
training thread need not call is worth a microsecond or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpwatch.wire.messages import PHASES, Step

SEEN = len(PHASES)
"""Bit mask of the phases that were entered; before it, each phase's nanoseconds."""

BUSY, RUNQUEUE, IDLE, GIL, COMM = range(SEEN + 1, SEEN + 6)
"""Wall, run-queue and blocked nanoseconds of the thread, the last by what blocked it."""

MOVES, MOVED, SAMPLES = range(SEEN + 6, SEEN + 9)
"""Copies between devices; nanoseconds of these and of collectives' calls and waits that Python
sees; batch elements (-1: unknown)."""

EMPTY = [0] * SAMPLES + [-1]


UNKNOWN_PHASES: tuple[None, ...] = (None,) * len(PHASES)
"""The device's times of phases where none is known."""


class Circumstances(NamedTuple):
    """What a measured step's thread times may be taken for.

    Attributes:
        always: The thread worked for this lane all the step, not just `BUSY` nanoseconds.
        others: Another Python thread was there, that could hold the GIL.
        helpers: Blocked may also mean waiting for an accelerator or for torch's own threads.
        accelerator: Collectives run there: blocked time does not tell how long they took.
    """

    always: bool
    others: bool
    helpers: bool
    accelerator: bool


def step_record(
    device: int,
    step: int,
    start_ns: int,
    end_ns: int,
    sums: list[int],
    issued: bool | None,
    measured: Circumstances | None,
    loss: float | None,
    on_device: Sequence[int | None] | None = None,
) -> Step:
    """The record of a lane's step.

    Args:
        device: The lane's.
        step: Its number.
        start_ns: As in `Step`.
        end_ns: As in `Step`.
        sums: What the lane added up.
        issued: Whether collectives were issued in the step, None if nobody looked.
        measured: None if the thread times were not read in this step.
        loss: As in `Step`.
        on_device: The phases' times on the device, which count where kernels are queued and the
            lane's own say nothing; None where they are not.
    """
    seen = sums[SEEN]
    times = sums if on_device is None else [sums[0], *on_device[1:]]  # data is the host's matter
    phases = [times[phase] if seen >> phase & 1 else None for phase in range(SEEN)]
    data, h2d, forward, backward, optimizer = phases
    split = None if measured is None else _split(sums, measured, end_ns - start_ns)
    on_cpu, runqueue, gil, idle = split or (None, None, None, None)
    known = split is not None and measured is not None and not measured.accelerator
    return Step(
        device,
        step,
        start_ns,
        end_ns,
        data,
        h2d,
        forward,
        backward,
        optimizer,
        on_cpu,
        runqueue,
        gil,
        idle,
        _exposed(sums, issued, known, end_ns - start_ns),
        loss,
        sums[SAMPLES] if sums[SAMPLES] >= 0 else None,
    )


def _split(
    sums: list[int], measured: Circumstances, wall_ns: int
) -> tuple[int, int, int | None, int] | None:
    """On-CPU, run-queue, GIL-wait and idle time, summing to `wall_ns`; None if they can't be."""
    busy = wall_ns if measured.always else sums[BUSY]
    blocked = sums[IDLE] + sums[GIL] + sums[COMM]
    on_cpu = busy - sums[RUNQUEUE] - blocked
    if sums[BUSY] > wall_ns or on_cpu < 0:  # a job longer than the step, or clocks that disagree
        return None
    idle = wall_ns - busy + sums[IDLE] + sums[COMM]
    if measured.helpers:
        return on_cpu, sums[RUNQUEUE], None, idle + sums[GIL]
    if not measured.others:  # nobody was there to hold it
        return on_cpu, sums[RUNQUEUE], 0, idle + sums[GIL]
    return on_cpu, sums[RUNQUEUE], sums[GIL], idle


def _exposed(sums: list[int], issued: bool | None, known: bool, wall_ns: int) -> int | None:
    """Copies by this thread, calls and waits that Python saw, and where C++ waited blocked time."""
    if issued is None:
        return sums[MOVED] if sums[MOVES] else None
    if issued and not known:
        return None
    return min(sums[MOVED] + sums[COMM], wall_ns)
