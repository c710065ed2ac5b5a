"""What each device's thread does in a step: on a core, queue (no free core), GIL, idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dpwatch.run.derive.comparison import on_core_share
from dpwatch.run.derive.distribution import spread
from dpwatch.run.model.snapshot import Rank, Run, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import segment_style, stacked
from dpwatch.tui.draw.metrics import Metric, name_of
from dpwatch.tui.draw.palette import WAIT_KINDS, Palette
from dpwatch.tui.draw.sentences import plural, processes_of
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line, right
from dpwatch.tui.widgets.device_rows import DeviceRows

_LABEL = 15
_FIGURE = 8
_TOLD = {"idle": "idle: waits for data, devices or ranks", "queue": "queue: no free core"}
_SORTS = (
    Metric(title="core", told="on a core", value=on_core_share, show=fmt.share),
    Metric(title="queue", told="queue", value=lambda r: r.runqueue_wait, show=fmt.share),
    Metric(title="GIL", told="GIL wait", value=lambda r: r.gil_wait, show=fmt.share),
    Metric(title="idle", told="idle", value=lambda r: r.idle, show=fmt.share),
)


class Threads(DeviceRows):
    """A bar per device whose full width is the step."""

    SORTS: ClassVar[tuple[Metric, ...]] = _SORTS
    MOST_LINES: ClassVar[int] = 2

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The largest losses, the legend, and the figures' names."""
        run = view.run
        return [summary_line(run, width, colors), legend(width, colors), self._names(width, colors)]

    def _names(self, width: int, colors: Palette) -> Text:
        names = ("core", "queue", "GIL", "idle")
        room = width - _FIGURE * len(names)
        text = left(f"  a step of each device · {self.sort_note()}", room)
        return line((text + "".join(right(each, _FIGURE) for each in names), colors.muted))

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The device under the cursor in words."""
        if self.chosen is None:
            return [Text()]
        return [told_line(self.chosen, view.run.ranks, width, colors)]

    def row_line(self, view: RunView, rank: Rank, part: int, width: int, colors: Palette) -> Text:
        """Name, bar, figures; then a blank."""
        if part:
            return Text()
        return thread_line(rank, processes_of(view.run) > 1, width, colors)


def parts_of(rank: Rank) -> dict[str, float | None]:
    """Shares of a step by what the thread does."""
    return {
        "compute": on_core_share(rank),
        "queue": rank.runqueue_wait,
        "gil": rank.gil_wait,
        "idle": rank.idle,
    }


def thread_line(rank: Rank, several: bool, width: int, palette: Palette) -> Text:
    """One device: a bar that is a whole step, and each part's share."""
    parts = parts_of(rank)
    name = clean(rank.device, 12)
    label = f"{rank.rank:>4} {name}" if several else name
    room = width - _LABEL - _FIGURE * len(parts)
    result = line(
        (left(label, _LABEL), palette.text),
        stacked(parts, WAIT_KINDS, room, palette, total=1.0),
    )
    for value in parts.values():
        style = palette.muted if value is None else palette.text
        result.append(right(fmt.share(value), _FIGURE), style)
    return result


def summary_line(run: Run, width: int, palette: Palette) -> Text:
    """The largest losses, and how many cores there are."""
    lost = []
    for metric in _SORTS[1:]:
        found = spread(run, metric.value)
        if found is not None:
            where = f" {name_of(found.highest, run.ranks)}" if found.high else ""
            lost.append(f"{metric.title} {metric.show(found.high)}{where}")
    text = f"highest: {' · '.join(lost)}" if lost else "no thread times yet"
    told = line((text, palette.strong))
    cores = f"  {plural(run.cores, 'core')} per process" if run.cores is not None else ""
    if told.cell_len + len(cores) <= width:
        told.append(cores, palette.muted)
    return fitted(told, width)


def told_line(rank: Rank, ranks: Sequence[Rank], width: int, palette: Palette) -> Text:
    """One device's step in words."""
    parts = parts_of(rank)
    if all(value is None for value in parts.values()):
        told = "no thread times"
    else:
        words = ("on a core", "in the queue", "at the GIL", "idle")
        pairs = zip(parts.values(), words, strict=True)
        told = ", ".join(f"{fmt.share(value)} {word}" for value, word in pairs)
    name = name_of(rank, ranks)
    return fitted(line((f"▸ {name}  ", palette.strong), (told, palette.text)), width)


def legend(width: int, palette: Palette) -> Text:
    """The legend."""
    for told in (_TOLD, {"idle": "idle", "queue": "queue"}):
        result = Text()
        for name, kind in WAIT_KINDS.items():
            result.append(kind.letter, palette.strong if palette.mono else segment_style(kind))
            result.append(f" {told.get(name, kind.name)}  ", palette.muted)
        if result.cell_len <= width:
            break
    return fitted(result, width)
