"""A figure by number of devices, a curve per strategy: which grow with N and which don't."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.style import Style

from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.layout import Block
from dpwatch.tui.draw.palette import Palette, palette
from dpwatch.tui.draw.plot import Grid, apart
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, right

SweepSeries = Mapping[str, Mapping[int, float | None]]
"""Values by strategy, then by number of devices."""

MARKS = "●■▲◆○□△◇"
"""A glyph per curve, to distinguish them without colour."""


def lines(
    series: SweepSeries,
    width: int,
    height: int,
    *,
    label: Callable[[float | None], str] = fmt.size,
) -> list[str]:
    """The chart as plain text, for a terminal's output; see `chart`."""
    drawn = chart(series, width, height, palette(mono=True), label=label)
    return [each.plain.rstrip() for each in drawn]


def chart(
    series: SweepSeries,
    width: int,
    height: int,
    colors: Palette,
    *,
    label: Callable[[float | None], str] = fmt.size,
) -> Block:
    """Curves over the number of devices, from zero up, both axes linear.

    Args:
        series: Values by strategy and number of devices; unknown ones (None) are left out.
        width: Cells, labels included.
        height: Lines, the axis included; at least a line per curve.
        colors: Theme.
        label: Formats the values: those on the y axis and, after its name, each curve's last.

    Returns:
        Lines of `width` cells; one that says so if no value is known.
    """
    points = {name: _known(values) for name, values in series.items()}
    points = {name: some for name, some in points.items() if some}
    every = [point for some in points.values() for point in some]
    if not every:
        return [fitted(line(("nothing measured yet", colors.muted)), width)]
    top = max(value for _, value in every)
    counts = sorted({count for count, _ in every})
    names = _names(points, label)
    margin = max(len(label(top)), len(label(0.0))) + 2
    across = max(width - margin - 1 - max(len(name) for name in names), 8)
    down = max(height - 1, len(points), 2)
    grid = Grid(across, down, (counts[0], counts[-1]), (0.0, top))
    styles = [colors.series[index % len(colors.series)] for index in range(len(points))]
    for some, style in zip(points.values(), styles, strict=True):
        grid.draw(some, style)
    for index, (some, style) in enumerate(zip(points.values(), styles, strict=True)):
        for point in some:
            grid.mark(point, MARKS[index % len(MARKS)], style)
    ends = apart([grid.dot(some[-1])[1] // 4 for some in points.values()], down)
    labels = dict(zip(ends, zip(names, styles, strict=True), strict=True))
    body = [
        _row(row, grid, (label(top), label(0.0)), margin, labels, colors) for row in range(down)
    ]
    return [fitted(each, width) for each in (*body, _axis(counts, grid, margin, colors))]


def _known(values: Mapping[int, float | None]) -> list[tuple[int, float]]:
    return [(count, value) for count, value in sorted(values.items()) if value is not None]


def _names(
    points: Mapping[str, list[tuple[int, float]]], label: Callable[[float | None], str]
) -> list[str]:
    return [
        f"{MARKS[index % len(MARKS)]} {name} {label(some[-1][1])}"
        for index, (name, some) in enumerate(points.items())
    ]


def _row(
    row: int,
    grid: Grid,
    ticks: tuple[str, str],
    margin: int,
    labels: Mapping[int | None, tuple[str, Style]],
    colors: Palette,
) -> Text:
    tick = ticks[0] if row == 0 else ticks[1] if row == grid.height - 1 else ""
    edge = "┤" if tick else "│"
    name, style = labels.get(row, ("", colors.muted))
    return line(
        (right(tick, margin - 2) + f" {edge}", colors.muted), grid.row(row), (f" {name}", style)
    )


def _axis(counts: list[int], grid: Grid, margin: int, colors: Palette) -> Text:
    """The numbers of devices below their points; overlapping ones are left out."""
    cells = [" "] * (grid.width + 1)
    free = 0
    for count in counts:
        text = str(count)
        at = min(grid.dot((count, 0.0))[0] // 2, grid.width - len(text))
        if at >= free:
            cells[at : at + len(text)] = text
            free = at + len(text) + 1
    return line(
        (" " * margin + "".join(cells[: grid.width]), colors.muted), (" devices", colors.muted)
    )
