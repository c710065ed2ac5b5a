"""The last steps of each lane on one clock: which phase when, for a screen. Pure.

Of a phase its length is measured and not when it began: a step's phases follow each other from its
start, the optimizer ends with it, and what no phase accounts for is put before the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dpwatch.run.model.snapshot import LaneSteps
from dpwatch.wire.messages import Step

APART_NS = 1_000_000_000
"""Lanes whose newest steps lie further apart do not wait for each other."""

_BEFORE_BACKWARD = ("data", "h2d", "forward")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A part of a step: a phase, `other`, `exposed` (where backward waits), or `waiting`."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Time between two steps in which so many others were only counted, or are lost."""

    steps: int
    start_ns: int
    end_ns: int


def gaps(steps: Sequence[Step]) -> list[Gap]:
    """Where a lane's steps do not follow one another."""
    return [
        Gap(steps=after.step - before.step - 1, start_ns=before.end_ns, end_ns=after.start_ns)
        for before, after in pairwise(steps)
        if after.step - before.step > 1 and after.start_ns > before.end_ns
    ]


def stretches(step: Step, *, shares: bool = False) -> list[Stretch]:
    """A step's parts from its start to its end, without holes; empty ones are left out.

    Exposed communication stands at the end of backward, as far as it finds room there.

    Args:
        step: The step.
        shares: Its device shares a process with others. What its thread is blocked for outside of
            all phases, it waits for those.
    """
    took_ns = max(step.end_ns - step.start_ns, 0)
    lengths = {name: _length(step, name) for name in (*_BEFORE_BACKWARD, "backward", "optimizer")}
    measured = sum(lengths.values())
    if measured > took_ns:  # phases of other threads can overlap
        lengths = {name: ns * took_ns // measured for name, ns in lengths.items()}
    exposed_ns = min(step.exposed_ns or 0, lengths["backward"])
    lengths["backward"] -= exposed_ns
    rest_ns = took_ns - sum(lengths.values()) - exposed_ns
    waiting_ns = min(step.idle_ns or 0, rest_ns) if shares else 0
    order = [
        *((name, lengths[name]) for name in (*_BEFORE_BACKWARD, "backward")),
        ("exposed", exposed_ns),
        ("waiting", waiting_ns),
        ("other", rest_ns - waiting_ns),
        ("optimizer", lengths["optimizer"]),
    ]
    found, at = [], step.start_ns
    for name, length in order:
        if length > 0:
            found.append(Stretch(name=name, start_ns=at, end_ns=at + length))
            at += length
    return found


def _length(step: Step, phase: str) -> int:
    return max(getattr(step, f"{phase}_ns") or 0, 0)


def clock_shifts(lanes: Sequence[LaneSteps], *, aligned: bool = False) -> dict[str, int]:
    """What to add to each host's times to have them on the first host's clock.

    Nothing where the head hub has `aligned` them. Else monotonic clocks of several hosts have
    nothing in common: hosts are laid upon each other where their newest common step ends; without
    one, where the newest of each does. Within a host times compare to the nanosecond.
    """
    if aligned:
        return {lane.host: 0 for lane in lanes}
    shifts: dict[str, int] = {}
    ends: dict[str, dict[int, int]] = {}
    for lane in lanes:
        by_step = ends.setdefault(lane.host, {})
        for step in lane.steps:
            by_step[step.step] = max(by_step.get(step.step, step.end_ns), step.end_ns)
    first = next(iter(ends.values()), {})
    for host, by_step in ends.items():
        newest = max(first.keys() & by_step.keys(), default=None)
        if newest is not None:
            shifts[host] = first[newest] - by_step[newest]
        else:
            shifts[host] = max(first.values(), default=0) - max(by_step.values(), default=0)
    return shifts


def extent(lanes: Sequence[LaneSteps], shifts: dict[str, int]) -> tuple[int, int] | None:
    """From the first start to the end of the newest steps, None while there are none.

    Frames of several ranks come one after another: it ends with the newest step that all lanes
    have come to, unless some has been silent for longer.
    """
    whole = [(lane.steps, shifts.get(lane.host, 0)) for lane in lanes if lane.steps]
    if not whole:
        return None
    start = min(steps[0].start_ns + shift for steps, shift in whole)
    newest = max(steps[-1].end_ns + shift for steps, shift in whole)
    common = min(steps[-1].step for steps, _ in whole)
    ends = (s.end_ns + shift for steps, shift in whole for s in steps if s.step <= common)
    end = max(ends, default=newest)
    return start, end if newest - end <= APART_NS else newest


def exposed_share(steps: Iterable[Step]) -> float | None:
    """Share of these steps that compute waited for communication, None where nobody measured.

    As `StepFigures.exposed_share` over all recent steps: without the first, which also holds what
    start-up costs, where there are others.
    """
    measured = [step for step in steps if step.exposed_ns is not None]
    counted = [step for step in measured if step.step] or measured
    wall_ns = sum(step.end_ns - step.start_ns for step in counted)
    return sum(step.exposed_ns or 0 for step in counted) / wall_ns if wall_ns else None
