"""Lays out the phases of recent steps on one clock.

Phases have measured durations but no start times: they are placed one after another from the step's
start, the optimizer at its end, and unaccounted time before the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dpwatch.run.model.snapshot import LaneSteps
from dpwatch.wire.messages import Step

APART_NS = 1_000_000_000
"""A lane silent for longer than this does not hold back the end of the timeline."""

_BEFORE_BACKWARD = ("data", "h2d", "forward")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A part of a step: a phase, `other`, `exposed` (where backward waits), or `waiting`."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Time between two steps during which `steps` others were not sampled or were lost."""

    steps: int
    start_ns: int
    end_ns: int


def gaps(steps: Sequence[Step]) -> list[Gap]:
    """Gaps between a lane's steps."""
    return [
        Gap(steps=after.step - before.step - 1, start_ns=before.end_ns, end_ns=after.start_ns)
        for before, after in pairwise(steps)
        if after.step - before.step > 1 and after.start_ns > before.end_ns
    ]


def stretches(step: Step, *, shares: bool = False) -> list[Stretch]:
    """A step's parts from start to end without gaps; empty ones are left out.

    Exposed communication is placed at the end of backward, limited to its duration.

    Args:
        step: The step.
        shares: Whether its device shares a process with others. Then blocked time outside of all
            phases counts as waiting for those.
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
    """Nanoseconds to add to each host's times to convert them to the first host's clock.

    Zero if the head hub has `aligned` them. Otherwise the hosts' monotonic clocks are unrelated:
    hosts are aligned at the end of their newest common step, or of each one's newest step if there
    is no common one. Within a host times compare to the nanosecond.
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
    """Start of the first and end of the newest steps, None if there are none.

    Ranks' frames arrive at different times, so it ends with the newest step that all lanes have
    reached, unless one of them lags by more than `APART_NS`.
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
    """Share of these steps in which compute waited for communication, None if not measured.

    Like `StepFigures.exposed_share`, it leaves out step 0, which includes start-up costs, unless it
    is the only one.
    """
    measured = [step for step in steps if step.exposed_ns is not None]
    counted = [step for step in measured if step.step] or measured
    wall_ns = sum(step.end_ns - step.start_ns for step in counted)
    return sum(step.exposed_ns or 0 for step in counted) / wall_ns if wall_ns else None
