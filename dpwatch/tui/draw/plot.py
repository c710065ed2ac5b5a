"""Curves drawn with braille dots, two across and four down in each cell."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from rich.style import Style

from dpwatch.run.model.snapshot import Curve
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, fitted, left, line, right

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
_MIDDLE_TICK_FROM = 7
"""Lines."""
_RISES = {
    (side, low, high): sum(_DOTS[y][side] for y in range(low, high + 1))
    for side in (0, 1)
    for low in range(4)
    for high in range(low, 4)
}
"""The dots of a cell between two lines, by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve of a plot; its name is at its end."""

    name: str
    curve: Curve
    style: Style


def plot(
    series: Sequence[Series],
    width: int,
    height: int,
    palette: Palette,
    *,
    label: Callable[[float | None], str],
    x_axis: bool = True,
    from_zero: bool = False,
) -> list[Text]:
    """Curves on shared axes.

    Args:
        series: Drawn in order; where two cross in a cell, the later one's colour shows.
        width: Cells, labels included.
        height: Lines, the x axis included.
        palette: Theme.
        label: Formats the values on the y axis: both ends and, in high plots, the middle.
        x_axis: Draw the step numbers below.
        from_zero: Start the y axis at 0 rather than at the lowest value.

    Returns:
        `height` lines of `width` cells; a note instead of the curves while there are none.
    """
    points = {each.name: _finite(each.curve) for each in series}
    every = [point for some in points.values() for point in some]
    if len(every) < 2 or width < 12 or height < 2:
        return _empty(width, height, palette)
    lowest, highest = min(y for _, y in every), max(y for _, y in every)
    if from_zero:
        lowest = min(lowest, 0.0)
    start, stop = min(x for x, _ in every), max(x for x, _ in every)
    names = max((len(each.name) for each in series if each.name), default=0)
    middle = lowest / 2 + highest / 2
    margin = max(len(label(y)) for y in (lowest, middle, highest)) + 1
    across, down = width - margin - (names + 1 if names else 0), height - (1 if x_axis else 0)
    grid = Grid(max(across, 4), down, (start, stop), (lowest, highest))
    for each in series:
        grid.draw(points[each.name], each.style)
    ends = _end_labels(series, points, grid) if names else {}
    ticks = {down - 1: label(lowest), 0: label(highest)}
    if down >= _MIDDLE_TICK_FROM:
        ticks[grid.dot((start, middle))[1] // 4] = label(middle)
    lines = []
    for row in range(down):
        tick = ticks.get(row, "")
        name, style = ends.get(row, ("", palette.muted))
        parts: list[Part] = [(right(tick, margin - 1) + " ", palette.muted), grid.row(row)]
        lines.append(line(*parts, (f" {name}", style)) if names else line(*parts))
    if x_axis:
        lines.append(_steps(start, stop, margin, grid.width, palette))
    return [fitted(each, width) for each in lines]


@lru_cache(maxsize=64)
def sparkline(curve: Curve, width: int, style: Style) -> Text:
    """A curve one line high and `width` cells wide, blank with fewer than two points."""
    points = _finite(curve)
    if len(points) < 2 or width < 1:
        return Text(" " * max(width, 0))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    grid = Grid(width, 1, (min(xs), max(xs)), (min(ys), max(ys)))
    grid.draw(points, style)
    return grid.row(0)


def _finite(curve: Curve) -> list[tuple[int, float]]:
    pairs = zip(curve.steps, curve.values, strict=False)
    return [(step, value) for step, value in pairs if math.isfinite(value)]


def _empty(width: int, height: int, palette: Palette) -> list[Text]:
    note = "no curve yet"
    lines = [line((" " * width, palette.muted)) for _ in range(height)]
    if height and width >= len(note):
        lines[height // 2] = line((note.center(width), palette.muted))
    return lines


def _steps(start: int, stop: int, margin: int, across: int, palette: Palette) -> Text:
    first, last = f"step {start}", str(stop)
    gap = across - len(first) - len(last)
    inner = f"{first}{' ' * gap}{last}" if gap > 0 else left(first, across)
    return line((" " * margin + inner, palette.muted))


def _end_labels(
    series: Sequence[Series], points: dict[str, list[tuple[int, float]]], grid: Grid
) -> dict[int, tuple[str, Style]]:
    """Each curve's name on the row of its last value, or near it."""
    drawn = [each for each in series if points[each.name]]
    rows = apart([grid.dot(points[each.name][-1])[1] // 4 for each in drawn], grid.height)
    return {
        row: (each.name, each.style)
        for each, row in zip(drawn, rows, strict=True)
        if row is not None
    }


def apart(wanted: Sequence[int], height: int) -> list[int | None]:
    """A row for each label, in the order of the wanted rows and as near to these as possible.

    With more labels than rows, the uppermost get none.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    rows: list[int | None] = [None] * len(wanted)
    free = 0
    for index in order:
        rows[index] = row = max(wanted[index], free)
        free = row + 1
    lowest = height - 1
    for index in reversed(order):
        row = min(rows[index] or 0, lowest)
        rows[index] = row if row >= 0 else None
        lowest = row - 1
    return rows


class Grid:
    """Braille cells over a range of x and y."""

    def __init__(
        self, width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float]
    ) -> None:
        self.width, self.height = width, height
        self._x, self._y = x_range, y_range
        self._bits = [[0] * width for _ in range(height)]
        self._styles: list[list[Style | None]] = [[None] * width for _ in range(height)]
        self._marks: dict[tuple[int, int], str] = {}

    def dot(self, point: tuple[float, float]) -> tuple[int, int]:
        """The dot a point falls on, from the top left."""
        return self._columns([point])[0], self._lines([point])[0]

    def draw(self, points: Sequence[tuple[float, float]], style: Style) -> None:
        """Join the points, which are ordered from left to right, by straight lines."""
        columns, lines = self._columns(points), self._lines(points)
        # Many of hundreds of points fall into one column of dots, and fill it from end to end; of a
        # line to the next column each of the two gets a half, which goes on from what it has.
        at, held, low, high = 0, -1, 0, 0
        while at < len(columns):
            x, end = columns[at], bisect_right(columns, columns[at], at)
            lowest, highest = min(lines[at:end]), max(lines[at:end])
            if held >= 0:
                before, first = lines[at - 1], lines[at]
                if x == held + 1:
                    turn, on = _halves(before, first, held)
                    low, high = min(low, turn), max(high, turn)
                    lowest, highest = min(lowest, on), max(highest, on)
                else:
                    self._leap(held, before, x, first, style)
                self._rise(held, low, high, style)
            held, low, high, at = x, lowest, highest, end
        if held >= 0:
            self._rise(held, low, high, style)

    def _columns(self, points: Sequence[tuple[float, float]]) -> list[int]:
        """Columns of dots of points from left to right, in one go.

        In halves, since the distance of two finite numbers can be more than the largest one.
        """
        start, stop = self._x
        across, width = self.width * 2 - 1, stop / 2 - start / 2
        if width <= 0:
            return [0] * len(points)
        start /= 2
        return [round((x / 2 - start) / width * across) for x, _ in points]

    def _lines(self, points: Sequence[tuple[float, float]]) -> list[int]:
        """Lines of dots of points, the uppermost being 0; in halves too."""
        low, high = self._y
        down, height = self.height * 4 - 1, high / 2 - low / 2
        if height <= 0:
            return [round(down / 2)] * len(points)
        low /= 2
        return [round((1 - (y / 2 - low) / height) * down) for _, y in points]

    def _leap(self, x0: int, y0: int, x1: int, y1: int, style: Style) -> None:
        """A line over columns that have no point."""
        hops = max(x1 - x0, abs(y1 - y0))
        for hop in range(hops + 1):
            y = round(y0 + (y1 - y0) * hop / hops)
            self._rise(round(x0 + (x1 - x0) * hop / hops), y, y, style)

    def _rise(self, x: int, low: int, high: int, style: Style) -> None:
        """Dots in one column, cell by cell."""
        column, side = x // 2, x % 2
        for row in range(low // 4, high // 4 + 1):
            self._bits[row][column] |= _RISES[side, max(low - 4 * row, 0), min(high - 4 * row, 3)]
            self._styles[row][column] = style

    def mark(self, point: tuple[float, float], glyph: str, style: Style) -> None:
        """Put a glyph where a point lies."""
        x, y = self.dot(point)
        self._marks[y // 4, x // 2] = glyph
        self._styles[y // 4][x // 2] = style

    def row(self, index: int) -> Text:
        """One line of cells."""
        glyphs = [chr(_BRAILLE + bits) if bits else " " for bits in self._bits[index]]
        for (row, column), glyph in self._marks.items():
            if row == index:
                glyphs[column] = glyph
        parts: list[Part] = []
        at = 0
        for style, cells in groupby(self._styles[index]):
            length = len(list(cells))
            parts.append(("".join(glyphs[at : at + length]), style or Style.null()))
            at += length
        return line(*parts)


def _halves(y0: int, y1: int, x0: int) -> tuple[int, int]:
    """Where a line from column `x0` to the next leaves the first, and where it enters the second.

    At the middle it is in the even one of the two.
    """
    hops = abs(y1 - y0)
    if not hops:
        return y0, y1
    way = 1 if y1 > y0 else -1
    turn = hops // 2 - (hops % 2 == 0 and x0 % 2 == 1)
    return y0 + way * turn, y0 + way * (turn + 1)
