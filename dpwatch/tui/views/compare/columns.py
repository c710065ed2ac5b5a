"""The figures that runs are compared by, as columns to sort by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpwatch.run.derive.comparison import Figures, devices
from dpwatch.run.model.largest_batch import DevicePeak, LargestBatch
from dpwatch.run.model.snapshot import Rank
from dpwatch.tui.draw import format as fmt
from dpwatch.wire.messages import CATEGORIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A run in the comparison.

    Attributes:
        name: Its name, cleaned.
        figures: Its own …
        single: … and those of the run on one device, if there is one.
    """

    name: str
    figures: Figures
    single: Figures | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A figure of each run.

    Attributes:
        key: Its name for sorting.
        title: Its heading.
        width: Cells.
        value: The figure.
        shown: The figure as text.
        timed: Whether it depends on the machine's cores.
        searched: Whether it is only known after a search for largest batches.
        says: Text shown instead of the figure, if any.
    """

    key: str
    title: str
    width: int
    value: Callable[[Entry], float | None]
    shown: Callable[[float | None], str]
    timed: bool = False
    searched: bool = False
    says: Callable[[Figures], str] | None = None

    def cell(self, entry: Entry) -> str:
        """The figure as text, `–` if unknown."""
        value = self.value(entry)
        known = value is not None and self.says is not None
        return self.says(entry.figures) if known and self.says else self.shown(value)


def _own(value: Callable[[Figures], float | None]) -> Callable[[Entry], float | None]:
    return lambda entry: value(entry.figures)


def _over_single(value: Callable[[Figures], float | None]) -> Callable[[Entry], float | None]:
    """A figure divided by that of the run on one device."""

    def ratio(entry: Entry) -> float | None:
        return _divided(value(entry.figures), value(entry.single) if entry.single else None)

    return ratio


def _divided(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _fullest(figures: Figures) -> float | None:
    known = [peak for peak in (figures.peak0, figures.peak_others_max) if peak is not None]
    return max(known, default=None)


def kept_parts(rank: Rank | None) -> Mapping[str, int | None]:
    """Bytes by category between steps; empty if none is known."""
    if rank is None:
        return {}
    return {name: getattr(rank.memory.at_step_end, name) for name in CATEGORIES}


def kept_bytes(rank: Rank | None) -> float | None:
    """All of them together."""
    known = [value for value in kept_parts(rank).values() if value is not None]
    return sum(known) if known else None


def keeps_most(figures: Figures) -> Rank | None:
    """The other device that keeps most between steps."""
    others = devices(figures.run)[1:]
    return max(others, key=lambda rank: kept_bytes(rank) or 0, default=None)


def _batch(figures: Figures) -> float | None:
    return figures.largest_batch.batch_per_gpu if figures.largest_batch else None


def fill(figures: Figures, of: Callable[[LargestBatch], DevicePeak | None]) -> float | None:
    """How full a device is at the largest batch, as a share of its memory."""
    device = of(figures.largest_batch) if figures.largest_batch else None
    return device.fill if device else None


def _who(figures: Figures) -> str:
    return figures.largest_batch.who if figures.largest_batch else fmt.UNKNOWN


COLUMNS = (
    Column(key="peak0", title="peak d0", width=9, value=_own(lambda f: f.peak0), shown=fmt.size),
    Column(
        key="peak",
        title="fullest",
        width=9,
        value=_own(lambda f: f.peak_others_max),
        shown=fmt.size,
    ),
    Column(
        key="peak_ratio",
        title="d0 mem",
        width=6,
        value=_own(lambda f: f.run.balance.peak_device0_over_median),
        shown=fmt.ratio,
    ),
    Column(
        key="peak_single",
        title="×single",
        width=7,
        value=_over_single(_fullest),
        shown=fmt.ratio,
    ),
    Column(
        key="kept0",
        title="kept d0",
        width=9,
        value=_own(lambda f: kept_bytes(f.first)),
        shown=fmt.size,
    ),
    Column(
        key="kept",
        title="most",
        width=9,
        value=_own(lambda f: kept_bytes(keeps_most(f))),
        shown=fmt.size,
    ),
    Column(
        key="kept_single",
        title="×single",
        width=7,
        value=_over_single(lambda f: kept_bytes(f.first)),
        shown=fmt.ratio,
    ),
    Column(
        key="traffic0",
        title="moves d0",
        width=9,
        value=_own(lambda f: f.traffic0),
        shown=fmt.size,
    ),
    Column(
        key="traffic",
        title="others",
        width=9,
        value=_own(lambda f: f.traffic_others),
        shown=fmt.size,
    ),
    Column(
        key="traffic_ratio",
        title="d0 traf",
        width=7,
        value=_own(lambda f: f.run.balance.traffic_device0_over_median),
        shown=fmt.ratio,
    ),
    Column(
        key="step",
        title="step",
        width=8,
        value=_own(lambda f: f.step_ms),
        shown=fmt.millis,
        timed=True,
    ),
    Column(
        key="rate",
        title="samples/s",
        width=9,
        value=_own(lambda f: f.samples_per_s),
        shown=fmt.rate,
        timed=True,
    ),
    Column(
        key="rate_single",
        title="×single",
        width=7,
        value=_over_single(lambda f: f.samples_per_s),
        shown=fmt.ratio,
        timed=True,
    ),
    Column(
        key="exposed",
        title="exposed",
        width=8,
        value=_own(lambda f: f.exposed_ms),
        shown=fmt.millis,
        timed=True,
    ),
    Column(
        key="overlapped",
        title="hidden",
        width=7,
        value=_own(lambda f: f.overlapped_share),
        shown=fmt.share,
        timed=True,
    ),
    Column(
        key="gil",
        title="GIL",
        width=5,
        value=_own(lambda f: f.gil_wait),
        shown=fmt.share,
        timed=True,
    ),
    Column(
        key="idle", title="idle", width=5, value=_own(lambda f: f.idle), shown=fmt.share, timed=True
    ),
    Column(
        key="queue",
        title="queue",
        width=5,
        value=_own(lambda f: f.runqueue_wait),
        shown=fmt.share,
        timed=True,
    ),
    Column(
        key="batch",
        title="max batch",
        width=9,
        value=_own(_batch),
        shown=lambda value: "none" if value == 0 else fmt.count(value),
        searched=True,
    ),
    Column(
        key="fill",
        title="full",
        width=5,
        value=_own(lambda f: fill(f, lambda found: found.limiting)),
        shown=fmt.share,
        searched=True,
    ),
    Column(
        key="fill_other",
        title="other",
        width=5,
        value=_own(lambda f: fill(f, lambda found: found.fullest_other)),
        shown=fmt.share,
        searched=True,
    ),
    Column(
        key="who",
        title="runs out",
        width=9,
        value=_own(_batch),
        shown=fmt.count,
        searched=True,
        says=_who,
    ),
    Column(key="loss", title="loss", width=6, value=_own(lambda f: f.loss), shown=fmt.number),
    Column(key="steps", title="steps", width=6, value=_own(lambda f: f.run.steps), shown=fmt.count),
)
"""All figures, in the order of the keys `,` and `.`."""

BY_KEY = {column.key: column for column in COLUMNS}
