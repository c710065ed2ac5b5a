"""The metrics that ranks can be coloured and sorted by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpwatch.run.derive.comparison import peak_bytes, traffic_bytes
from dpwatch.run.model.snapshot import Rank
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure of a rank.

    Attributes:
        title: Its name on the screen.
        told: Its name in a sentence, with what it is measured over.
        value: Takes it from a row, None if unknown.
        show: Formats it with its unit.
        least_span: A scale spans at least this much, whatever the values.
    """

    title: str
    told: str
    value: Callable[[Rank], float | None]
    show: Callable[[float | None], str]
    least_span: float = 0.0


_LEAST_SHARE = 0.1

METRICS = (
    Metric(
        title="step",
        told="median step time",
        value=lambda rank: rank.step_ms.p50,
        show=fmt.millis,
    ),
    Metric(
        title="wait",
        told="wait for other ranks at collectives, a step",
        value=lambda rank: rank.comm_ms.wait,
        show=fmt.millis,
    ),
    Metric(
        title="exposed",
        told="communication that compute waits for, a step",
        value=lambda rank: rank.comm_ms.exposed,
        show=fmt.millis,
    ),
    Metric(title="memory", told="peak memory", value=peak_bytes, show=fmt.size),
    Metric(title="traffic", told="sent and received, a step", value=traffic_bytes, show=fmt.size),
    Metric(
        title="data",
        told="wait for the next batch, a step",
        value=lambda rank: rank.phases_ms.data,
        show=fmt.millis,
    ),
    Metric(
        title="idle",
        told="idle share of a step",
        value=lambda rank: rank.idle,
        show=fmt.share,
        least_span=_LEAST_SHARE,
    ),
    Metric(
        title="queue",
        told="share of a step without a free core",
        value=lambda rank: rank.runqueue_wait,
        show=fmt.share,
        least_span=_LEAST_SHARE,
    ),
    Metric(
        title="GIL",
        told="GIL wait, share of a step",
        value=lambda rank: rank.gil_wait,
        show=fmt.share,
        least_span=_LEAST_SHARE,
    ),
    Metric(
        title="GPU",
        told="GPU busy",
        value=lambda rank: rank.gpu.util,
        show=fmt.share,
        least_span=_LEAST_SHARE,
    ),
    Metric(title="steps", told="steps done", value=lambda rank: float(rank.steps), show=fmt.count),
)
BY_TITLE = {metric.title: metric for metric in METRICS}


def by_metric(ranks: Sequence[Rank], metric: Metric | None, *, reverse: bool) -> list[Rank]:
    """Rows with the largest value first, unknown ones last; without a metric as they are."""
    if metric is None:
        return list(reversed(ranks)) if reverse else list(ranks)
    known = [rank for rank in ranks if is_known(metric.value(rank))]
    rest = [rank for rank in ranks if not is_known(metric.value(rank))]
    return sorted(known, key=lambda r: metric.value(r) or 0.0, reverse=not reverse) + rest


def name_of(rank: Rank, ranks: Sequence[Rank]) -> str:
    """What identifies a row: its rank, or its device if one process has several."""
    if ranks and ranks[0].rank == ranks[-1].rank and len(ranks) > 1:
        return clean(rank.device, 16)
    return f"rank {rank.rank}"


def is_known(value: float | None) -> bool:
    """Whether there is a figure to draw."""
    return value is not None and math.isfinite(value)
