"""Defines the figures of lanes and ops, and the steps that they are computed over.

`lane_metrics` computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dpwatch.run.state.parts import LaneState, RankState
from dpwatch.run.state.series import WINDOW, Tally, summed
from dpwatch.wire.messages import PHASES

DEVICE_TIMES = tuple(map(PHASES.index, ("forward", "backward", "optimizer")))
"""Indices of the phases that are timed on a CUDA device itself."""

START_UP_STEPS = 2

IN_STEP = WINDOW // 4
"""Ranks less than this many steps apart are compared over the same steps."""

NEARLY_ALL = 0.8
"""Share of the steps with calls whose callers' waits must be known."""


class StepFigures(NamedTuple):
    """Figures of a lane's recent steps; None is unknown.

    Attributes:
        phases_ms: Median of each of `PHASES`.
        timed: Whether any of `DEVICE_TIMES` is known.
        exposed_ms: Mean time that compute waited for communication, over steps where it is known.
        exposed_share: The same as a share of those steps' time.
        comm_ms: Mean time with communication in flight, over steps where it is known.
        mean_ms: Mean step time.
        shares: Each of `SHARES`, over the steps in which it was measured.
        samples_per_s: Throughput of this lane.
    """

    p50_ms: float | None
    p95_ms: float | None
    last_ms: float | None
    phases_ms: tuple[float | None, ...]
    timed: bool
    exposed_ms: float | None
    comm_ms: float | None
    mean_ms: float | None
    exposed_share: float | None
    shares: tuple[float | None, ...]
    samples_per_s: float | None


class CallFigures(NamedTuple):
    """Figures of a lane's collectives: means over complete steps (see `complete_steps`).

    Attributes:
        sent_bytes: Bytes sent by the algorithm, over `traffic_steps`; None without such steps.
        received_bytes: Bytes received, likewise.
        wait_ms: Time that this rank waited for other ranks.
        waited_ms: Time that callers were blocked, if known for nearly all calls.
        timed_ms: Total duration of a step's calls, over steps whose calls were all timed.
        busy: Share of steps that have calls.
    """

    sent_bytes: float | None
    received_bytes: float | None
    wait_ms: float | None
    waited_ms: float | None
    timed_ms: float | None
    busy: float


class OpFigures(NamedTuple):
    """Figures of one op in one group, over all ranks.

    Attributes:
        cells: Number of steps, summed over ranks.
        calls: Number of calls in them.
        nbytes: Payload bytes of all calls.
        timed_ns: Total duration of the timed calls.
        moved: Payload bytes of the timed calls.
        waited_ms: Mean time per step that callers were blocked, None if unknown.
    """

    cells: int
    calls: int
    nbytes: int
    timed_ns: int
    moved: float
    waited_ms: float | None


class Figures(NamedTuple):
    """Figures of all lanes, in their order, and of an op by its key in `RunState.ops`."""

    steps: Sequence[StepFigures]
    calls: Sequence[CallFigures]
    op: Callable[[str], OpFigures]


def op_of(key: str) -> str:
    """The op of a key of `LaneState.calls`."""
    return key.partition("/")[0]


def waited_ms(known_ns: int, known: int, busy: int, steps: int) -> float | None:
    """`per_step_ms` of callers' waits, None if C++ code waits for some of the calls."""
    return per_step_ms(known_ns, known, busy, steps) if known >= NEARLY_ALL * busy else None


def per_step_ms(known_ns: int, known: int, busy: int, steps: int) -> float | None:
    """Mean per step of a time that is known in only some of the steps in which it occurs.

    Args:
        known_ns: Sum of the known times.
        known: Number of steps in which it is known.
        busy: Number of steps in which it occurs.
        steps: Number of all steps.
    """
    if not busy:
        return 0.0 if steps else None
    return known_ns / known * busy / steps / 1e6 if known else None


def tallies(lane: LaneState, steps: Sequence[int]) -> list[Tally]:
    """A lane's collectives in each of these steps, summed over ops and groups."""
    by_op = [by_step.over(steps) for by_step in lane.calls.values()]
    return (
        [summed(each) for each in zip(*by_op, strict=True)] if by_op else [Tally() for _ in steps]
    )


def complete_steps(whole_steps: int) -> range:
    """Steps that per-step figures are computed over: complete and recent, without the first two.

    The first two are not typical: in the first DDP broadcasts the model and the optimizer creates
    its state, in the second DDP broadcasts its new order of buckets.

    Args:
        whole_steps: Number of steps whose calls have all arrived.
    """
    first = max(0, min(START_UP_STEPS, whole_steps - 1))
    return range(max(first, whole_steps - WINDOW // 2), whole_steps)


def traffic_steps(rank: RankState, common: int) -> range:
    """Steps that traffic is computed over: those of all ranks, so that devices are comparable.

    A rank that is far ahead of the others uses its own steps.

    Args:
        rank: The rank.
        common: Number of steps that all ranks have completed.
    """
    done = rank.whole_steps
    return complete_steps(common if done - common < IN_STEP else done)


def timed_ms(each: Sequence[Tally]) -> float | None:
    """A step's communication time, None unless each of its calls was timed."""
    if not any(t.calls for t in each) or any(t.timed_calls < t.calls for t in each):
        return None
    return sum(t.timed_ns for t in each) / 1e6
