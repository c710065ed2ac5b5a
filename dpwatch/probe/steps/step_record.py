"""A lane's sums over one step, and the record made of them.

The training thread only adds to a flat list and hands it over; `step_record` runs on the sender
thread. Python code that last ran a step ago is out of the processor's caches, so every function
that the training thread does not call saves a microsecond or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpwatch.wire.messages import PHASES, Step

SEEN = len(PHASES)
"""Index of the bit mask of phases that were entered; the indices before it hold each phase's
nanoseconds."""

BUSY, RUNQUEUE, IDLE, GIL, COMM = range(SEEN + 1, SEEN + 6)
"""Wall, run-queue and blocked nanoseconds of the thread, the latter by what blocked it."""

MOVES, MOVED, SAMPLES = range(SEEN + 6, SEEN + 9)
"""Number of copies between devices; nanoseconds of these and of the calls and waits of collectives
that Python sees; batch elements (-1: unknown)."""

EMPTY = [0] * SAMPLES + [-1]


UNKNOWN_PHASES: tuple[None, ...] = (None,) * len(PHASES)
"""Device times of phases when none is known."""


class Circumstances(NamedTuple):
    """How a measured step's thread times may be interpreted.

    Attributes:
        always: The thread worked for this lane during the whole step, not just for `BUSY`
            nanoseconds.
        others: There was another Python thread that could hold the GIL.
        helpers: Blocked may also mean waiting for an accelerator or for torch's own threads.
        accelerator: Collectives run there: blocked time does not show how long they took.
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
    """Makes the record of a lane's step.

    Args:
        device: The lane's device.
        step: The step's number.
        start_ns: As in `Step`.
        end_ns: As in `Step`.
        sums: The lane's sums.
        issued: Whether collectives were issued in the step, None if they are not observed.
        measured: None if the thread times were not read in this step.
        loss: As in `Step`.
        on_device: Device times of the phases, used where kernels are queued and the host's times
            say nothing; None where they are not.
    """
    seen = sums[SEEN]
    times = sums if on_device is None else [sums[0], *on_device[1:]]  # data is host time
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
    """On-CPU, run-queue, GIL-wait and idle time, summing to `wall_ns`; None if inconsistent."""
    busy = wall_ns if measured.always else sums[BUSY]
    blocked = sums[IDLE] + sums[GIL] + sums[COMM]
    on_cpu = busy - sums[RUNQUEUE] - blocked
    if sums[BUSY] > wall_ns or on_cpu < 0:  # a job longer than the step, or clocks that disagree
        return None
    idle = wall_ns - busy + sums[IDLE] + sums[COMM]
    if measured.helpers:
        return on_cpu, sums[RUNQUEUE], None, idle + sums[GIL]
    if not measured.others:  # no other thread could hold the GIL
        return on_cpu, sums[RUNQUEUE], 0, idle + sums[GIL]
    return on_cpu, sums[RUNQUEUE], sums[GIL], idle


def _exposed(sums: list[int], issued: bool | None, known: bool, wall_ns: int) -> int | None:
    """Time of this thread's copies, of calls and waits Python saw, and blocked time for C++."""
    if issued is None:
        return sums[MOVED] if sums[MOVES] else None
    if issued and not known:
        return None
    return min(sums[MOVED] + sums[COMM], wall_ns)
