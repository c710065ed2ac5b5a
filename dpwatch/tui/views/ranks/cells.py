"""The heatmap's lines: a cell per rank, by colour and also by the height of its block. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style

from dpwatch.run.derive.distribution import Spread
from dpwatch.run.model.snapshot import Rank
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.layout import Block
from dpwatch.tui.draw.metrics import METRICS, Metric, is_known, name_of
from dpwatch.tui.draw.palette import SEVERITY_GLYPHS, STATE_GLYPHS, TELLING_STATES, Palette
from dpwatch.tui.draw.sentences import plural
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line
from dpwatch.tui.views.ranks.layout import FIGURE_CELL, Layout

Named = Mapping[tuple[int, str], str]
"""Rows that a finding is about, with its severity: see `frame.named_rows`."""
RAMP = "▁▂▃▄▅▆▇█"
UNKNOWN = "·"
TITLE = 10
"""Cells of a metric's name before its row."""

_LEAST_SPAN = 0.2
"""A scale spans at least this share of its lower end, or noise would look like differences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatScale:
    """The values of the lowest and the highest block."""

    low: float
    high: float

    @classmethod
    def of(cls, found: Spread, metric: Metric) -> HeatScale:
        """From the lowest value to the highest; nearly equal values stay low."""
        span = max(found.high - found.low, found.low * _LEAST_SPAN, metric.least_span)
        return cls(low=found.low, high=found.low + span)

    def level(self, value: float | None) -> int | None:
        """Step of the ramp, 0 to 7; None if unknown."""
        if value is None or not is_known(value):
            return None
        span = self.high - self.low
        part = (value - self.low) / span if span > 0 else 0.0
        return max(min(int(part * len(RAMP)), len(RAMP) - 1), 0)


def metric_line(chosen: Metric, width: int, palette: Palette) -> Text:
    """Every metric's name, the current one in brackets. Clicks read the style's meta."""
    result = line(("m ", palette.accent))
    for index, metric in enumerate(METRICS):
        here = metric is chosen
        target = Style(meta={"metric": index})
        name = f"[{metric.title}]" if here else f" {metric.title} "
        result.append(name, (palette.strong if here else palette.muted) + target)
    return fitted(result, width)


def legend_line(
    metric: Metric, scale: HeatScale | None, number: int, width: int, palette: Palette
) -> Text:
    """The metric drawn, and the values of the blocks."""
    told = line((f"{number} ranks by {metric.told}  ", palette.text))
    if scale is None:
        told.append("not known in this run", palette.muted)
        return fitted(told, width)
    told.append(f"{metric.show(scale.low)} ", palette.muted)
    for glyph, style in zip(RAMP, palette.heat, strict=True):
        told.append(glyph * 2, style)
    told.append(f" {metric.show(scale.high)}", palette.muted)
    meanings = {"failed": "failed or critical"}
    marks = f"  {UNKNOWN} unknown  " + "  ".join(
        f"{STATE_GLYPHS[state]} {meanings.get(state, state)}" for state in TELLING_STATES
    )
    if told.cell_len + cell_len(marks) <= width:
        told.append(marks, palette.muted)
    return fitted(told, width)


def heat_row(
    ranks: Sequence[Rank],
    where: Layout,
    row: int,
    metric: Metric,
    scale: HeatScale | None,
    cursor: int,
    palette: Palette,
    named: Named,
) -> Text:
    """One row of cells after the hosts' names or the ranks' numbers."""
    result = Text()
    pieces = [(x, text, palette.muted) for x, text in where.labels[row]]
    for index in where.rows[row]:
        here = palette.chosen if index == cursor else None
        x = where.places[index][1]
        for text, style in _cell(ranks[index], where.cell, metric, scale, palette, named):
            pieces.append((x, text, here or style))
            x += len(text)
    for x, text, style in sorted(pieces, key=lambda piece: piece[0]):
        result.append(" " * (x - result.cell_len))
        result.append(text, style)
    return result


def multiples_width(ranks: Sequence[Rank]) -> int:
    """Cells of every metric's row with a cell for each of these ranks."""
    return TITLE + len(ranks) * FIGURE_CELL


def multiples_head(ranks: Sequence[Rank], cursor: int, palette: Palette, named: Named) -> Text:
    """The columns' names: a rank, or a device of the one process; marked if it has a finding."""
    result = Text(" " * TITLE)
    for index, rank in enumerate(ranks):
        style = palette.chosen if index == cursor else palette.muted
        severity = named.get((rank.rank, rank.device))
        mark = f"{SEVERITY_GLYPHS.get(severity, '·')} " if severity else ""
        result.append(mark, palette.severity(severity or ""))
        result.append(left(name_of(rank, ranks), FIGURE_CELL - 1 - len(mark)), style)
        result.append(" ")
    return result


def multiple_row(
    ranks: Sequence[Rank],
    metric: Metric,
    scale: HeatScale | None,
    palette: Palette,
    named: Named,
    *,
    chosen: bool,
) -> Text:
    """One metric of all ranks, on a scale of its own; a click on its name selects it."""
    target = Style(meta={"metric": METRICS.index(metric)})
    style = (palette.strong if chosen else palette.muted) + target
    result = line((left(f" {metric.title}", TITLE), style))
    for rank in ranks:
        for text, cell_style in _cell(rank, FIGURE_CELL, metric, scale, palette, named):
            result.append(text, cell_style)
        result.append(" ")
    return result


def _cell(
    rank: Rank,
    cell: int,
    metric: Metric,
    scale: HeatScale | None,
    palette: Palette,
    named: Named,
) -> list[tuple[str, Style]]:
    """Its glyph in the figure's colour, or the figure itself if it fits.

    In a hang all ranks are stuck: those that the others wait for have a glyph of their own.
    """
    value = metric.value(rank)
    level = scale.level(value) if scale else None
    glyph, style = UNKNOWN, palette.faint
    if rank.state == "stalled" and named.get((rank.rank, rank.device)) == "critical":
        glyph, style = SEVERITY_GLYPHS["critical"], palette.bad
    elif rank.state in TELLING_STATES:
        glyph, style = STATE_GLYPHS[rank.state], palette.state(rank.state)
    elif level is not None:
        glyph, style = RAMP[level], palette.heat[level]
    if cell == FIGURE_CELL:
        return [(glyph * 2, style), (left(f" {metric.show(value)}", cell - 3), palette.text)]
    return [(glyph * max(cell - 1, 1), style)]


def told_lines(
    rank: Rank,
    ranks: Sequence[Rank],
    metric: Metric,
    found: Spread | None,
    width: int,
    palette: Palette,
) -> Block:
    """The rank under the cursor with its figure, and the figure's distribution over all ranks."""
    value = metric.value(rank)
    state = clean(rank.state, 12)
    first = line(
        ("▸ ", palette.accent),
        (f"rank {rank.rank} · {clean(rank.device, 16)}", palette.strong),
        (f"  {metric.title} ", palette.muted),
        (metric.show(value), palette.strong),
        (f"  {STATE_GLYPHS.get(state, '·')} {state}", palette.state(state)),
        (f"  {plural(rank.steps, 'step')} · {clean(rank.host, 40)}", palette.muted),
    )
    if found is None:
        return [fitted(first, width), Text(" " * width)]
    times = f"{fmt.ratio(value / found.median)} the " if value and found.median else ""
    second = line(
        (f"  {times}median {metric.show(found.median)}", palette.text),
        (f"  highest {metric.show(found.high)} {name_of(found.highest, ranks)}", palette.muted),
        (f"  lowest {metric.show(found.low)} {name_of(found.lowest, ranks)}", palette.muted),
    )
    return [fitted(first, width), fitted(second, width)]
