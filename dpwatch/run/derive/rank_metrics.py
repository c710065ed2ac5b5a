"""What a lane's last steps and its collectives come to: the figures, and over which steps they are.

`lane_metrics` computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dpwatch.run.state.parts import LaneState, RankState
from dpwatch.run.state.series import WINDOW, Tally, summed
from dpwatch.wire.messages import PHASES

DEVICE_TIMES = tuple(map(PHASES.index, ("forward", "backward", "optimizer")))
"""Phases that a CUDA device has times of its own of."""

START_UP_STEPS = 2

IN_STEP = WINDOW // 4
"""Ranks fewer steps apart than this are compared over the same ones."""

NEARLY_ALL = 0.8
"""Of the steps with calls: in so many of them it is known how long their callers waited."""


class StepFigures(NamedTuple):
    """What a lane's last steps say; times in milliseconds, None unknown.

    Attributes:
        phases_ms: Median of each of `PHASES`, and whether …
        timed: … any of the device's own is known.
        exposed_ms: Communication that compute waited for, the mean of the steps in which that is
            known, …
        exposed_share: … and of those steps' time.
        comm_ms: While any communication was under way, likewise.
        mean_ms: Of the steps themselves.
        shares: Of `SHARES`, over the steps in which each was measured.
        samples_per_s: Of this lane.
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
    """What a lane's collectives come to per step: means over complete steps (see `complete_steps`).

    Attributes:
        sent_bytes: By the algorithm, over the steps asked for; None without any, …
        received_bytes: … and what it receives.
        wait_ms: For which this rank waited for others to come.
        waited_ms: For which callers waited, where that is known of nearly all calls.
        timed_ms: How long the calls of a step took, in steps each of whose calls was timed.
        busy: Share of the steps that have calls.
    """

    sent_bytes: float | None
    received_bytes: float | None
    wait_ms: float | None
    waited_ms: float | None
    timed_ms: float | None
    busy: float


class OpFigures(NamedTuple):
    """All ranks' calls of one op in one group, over `cells` steps of ranks.

    Attributes:
        calls: In all of them, …
        nbytes: … and the bytes handed in.
        timed_ns: How long those took whose end is known, and …
        moved: … the bytes handed in to these.
        waited_ms: For which their caller waited, the mean of a step, as far as that is known.
    """

    cells: int
    calls: int
    nbytes: int
    timed_ns: int
    moved: float
    waited_ms: float | None


class Figures(NamedTuple):
    """Those of all lanes, in their order, and of an op by its key in `RunState.ops`."""

    steps: Sequence[StepFigures]
    calls: Sequence[CallFigures]
    op: Callable[[str], OpFigures]


def op_of(key: str) -> str:
    """The op of a key of `LaneState.calls`."""
    return key.partition("/")[0]


def waited_ms(known_ns: int, known: int, busy: int, steps: int) -> float | None:
    """`per_step_ms` of what callers waited, unless C++ waits for some of the calls."""
    return per_step_ms(known_ns, known, busy, steps) if known >= NEARLY_ALL * busy else None


def per_step_ms(known_ns: int, known: int, busy: int, steps: int) -> float | None:
    """The mean over steps of a time that is known in some of those in which it is not 0.

    Args:
        known_ns: Its sum, …
        known: … over so many steps.
        busy: Steps in which there is such a time.
        steps: All of them.
    """
    if not busy:
        return 0.0 if steps else None
    return known_ns / known * busy / steps / 1e6 if known else None


def tallies(lane: LaneState, steps: Sequence[int]) -> list[Tally]:
    """A lane's collectives in each of these steps, whatever op and group."""
    by_op = [by_step.over(steps) for by_step in lane.calls.values()]
    return (
        [summed(each) for each in zip(*by_op, strict=True)] if by_op else [Tally() for _ in steps]
    )


def complete_steps(whole_steps: int) -> range:
    """Steps that per-step figures are taken over: complete, recent, and not the first two.

    These are unlike the rest: in the first DDP broadcasts the model and the optimizer makes its
    state, in the second DDP tells all ranks in which order to fill its buckets from now on.

    Args:
        whole_steps: Steps of which all calls have come.
    """
    first = max(0, min(START_UP_STEPS, whole_steps - 1))
    return range(max(first, whole_steps - WINDOW // 2), whole_steps)


def traffic_steps(rank: RankState, common: int) -> range:
    """Steps that bytes are taken over: those that all ranks have done, so that devices compare.

    A rank that has gone far beyond them is not held back.

    Args:
        rank: The rank.
        common: Steps that all ranks have done.
    """
    done = rank.whole_steps
    return complete_steps(common if done - common < IN_STEP else done)


def timed_ms(each: Sequence[Tally]) -> float | None:
    """A step's communication time, known only if each of its calls was timed."""
    if not any(t.calls for t in each) or any(t.timed_calls < t.calls for t in each):
        return None
    return sum(t.timed_ns for t in each) / 1e6
