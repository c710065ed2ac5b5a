"""The comparison's table: which bars and figures fit, and one line per run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style

from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import segment_style, stacked
from dpwatch.tui.draw.layout import Block
from dpwatch.tui.draw.palette import STATE_GLYPHS, Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line, right
from dpwatch.tui.views.compare.columns import BY_KEY, Column, Entry
from dpwatch.tui.views.compare.metrics import Metric

NAME_MIN, NAME_MAX = 8, 16
BAR_MIN, BAR_GOOD, BAR_MAX = 10, 18, 44
"""Cells of a bar: the least, the most before extra columns appear, the most."""

_MARKS = 3
_MORE = ("step", "rate", "exposed", "gil", "loss", "peak0", "traffic0", "queue")
"""Figures shown besides a metric's own if there is room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A layout: the metric's bars with their figures, and the columns after them.

    Attributes:
        metric: What is drawn.
        full: By bar, the amount of a full one; the same for all bars of a kind.
        bar: Cells of each bar.
        columns: After the bars.
        name: Cells of the names.
        sort: Key of the column sorted by.
        reverse: Whether against its usual direction.
        short: Whether times measure the machine, so that their titles have a star.
    """

    metric: Metric
    full: float
    bar: int
    columns: tuple[Column, ...]
    name: int
    sort: str
    reverse: bool
    short: bool

    def title(self, column: Column) -> str:
        """A column's heading with its star and the direction it is sorted in."""
        star = "*" if column.timed and self.short else ""
        arrow = ("▲" if self.reverse else "▼") if column.key == self.sort else ""
        return f"{column.title}{star}{arrow}"

    def width(self, column: Column) -> int:
        """Cells of a column; no figure is cut and no heading either."""
        return max(column.width, len(self.title(column)))


def table_for(
    metric: Metric,
    entries: Sequence[Entry],
    width: int,
    *,
    sort: str = "",
    reverse: bool = False,
    more: bool = True,
    searched: bool = False,
) -> Table:
    """The layout for `width` cells: the metric's own figures, the one sorted by, then others.

    Args:
        metric: What is drawn.
        entries: All runs, including filtered ones: bars keep their scale.
        width: Cells.
        sort: Key of the column sorted by, "" for none. It is always shown.
        reverse: Whether against its usual direction.
        more: Show further columns if there is room.
        searched: Whether the largest batch is wanted too.
    """
    bare = Table(
        metric=metric,
        full=max((_length(entry, metric) for entry in entries), default=0.0),
        bar=0,
        columns=(),
        name=min(max([NAME_MIN, *(len(entry.name) for entry in entries)]), NAME_MAX),
        sort=sort,
        reverse=reverse,
        short=any(entry.figures.cores_short for entry in entries),
    )
    own = [BY_KEY[bar.key] for bar in metric.bars]
    room = width - _MARKS - bare.name - sum(bare.width(column) + 2 for column in own)
    told = {key for key in BY_KEY if any(BY_KEY[key].value(each) is not None for each in entries)}
    kept: list[str] = []
    asked = [sort] * (sort in BY_KEY) + ["batch"] * searched
    asked += [key for key in metric.keys if key in told or not entries]
    for key in dict.fromkeys([*asked, *(key for key in _MORE if more and key in told)]):
        least = BAR_MIN if key in asked else BAR_GOOD
        cells = bare.width(BY_KEY[key]) + 1
        if BY_KEY[key] not in own and room - cells >= least * len(own):
            kept.append(key)
            room -= cells
    order = [key for key in dict.fromkeys([*metric.keys, "batch", *_MORE, sort]) if key in kept]
    return Table(
        metric=metric,
        full=bare.full,
        bar=max(min(room // len(own), BAR_MAX), 4),
        columns=tuple(BY_KEY[key] for key in order),
        name=bare.name,
        sort=sort,
        reverse=reverse,
        short=bare.short,
    )


def _length(entry: Entry, metric: Metric) -> float:
    return max(
        sum(value or 0 for value in bar.parts(entry.figures).values()) for bar in metric.bars
    )


def head_line(table: Table, palette: Palette) -> Text:
    """The headings; the one sorted by is highlighted. Clicks read the style's meta."""
    parts: list[Text | tuple[str, Style]] = [
        (" " * _MARKS + left("strategy", table.name), _head_style("strategy", table, palette))
    ]
    for bar in table.metric.bars:
        parts.append((" " + left(bar.title, table.bar), palette.muted))
        parts.append(_heading(BY_KEY[bar.key], table, palette))
    parts += [_heading(column, table, palette) for column in table.columns]
    return line(*parts)


def _heading(column: Column, table: Table, palette: Palette) -> tuple[str, Style]:
    text = " " + right(table.title(column), table.width(column))
    return text, _head_style(column.key, table, palette)


def _head_style(key: str, table: Table, palette: Palette) -> Style:
    style = palette.strong if key == table.sort else palette.muted
    return style + Style(meta={"sort": key})


def row_line(
    entry: Entry, table: Table, palette: Palette, *, style: Style, chosen: bool = False
) -> Text:
    """A run: the cursor, its state, its name, its bars with their figures, further figures."""
    state = entry.figures.run.state
    parts: list[Text | tuple[str, Style]] = [
        ("▸" if chosen else " ", palette.accent),
        (f"{STATE_GLYPHS.get(state, '·')} ", palette.state(state)),
        (left(entry.name, table.name), style),
    ]
    for bar in table.metric.bars:
        amounts = bar.parts(entry.figures)
        drawn = stacked(amounts, bar.kinds, table.bar, palette, total=table.full)
        parts += [(" ", palette.text), drawn, _figure(BY_KEY[bar.key], entry, table, palette)]
    parts += [_figure(column, entry, table, palette) for column in table.columns]
    return line(*parts)


def _figure(column: Column, entry: Entry, table: Table, palette: Palette) -> tuple[str, Style]:
    text = column.cell(entry)
    style = palette.muted if text == fmt.UNKNOWN else palette.text
    return " " + right(text, table.width(column)), style


def legend(metric: Metric, width: int, palette: Palette) -> Block:
    """The legend of the metric's bars."""
    lines: Block = [Text(" " * _MARKS)]
    for kind in metric.bars[0].kinds.values():
        if kind.letter == "?":
            continue
        entry = line((f" {kind.letter} ", segment_style(kind)), (f" {kind.name}  ", palette.muted))
        if lines[-1].cell_len + entry.cell_len > width:
            lines.append(Text(" " * _MARKS))
        lines[-1].append_text(entry)
    return [fitted(each, width) for each in lines]
