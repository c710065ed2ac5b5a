"""Widgets that draw line by line, and redraw only the lines that changed.

Textual redraws a widget as a whole. Most lines of a dashboard stay the same from one moment to the
next, and drawing one costs more than finding out that it hasn't changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.style import Style
from textual.filter import ANSIToTruecolor
from textual.geometry import Region
from textual.reactive import var
from textual.strip import Strip
from textual.widget import Widget

from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.strips import strip_of
from dpwatch.tui.snapshots.frame import Frame

if TYPE_CHECKING:
    from typing_extensions import Self


class Line(NamedTuple):
    """A line, and the style beneath it, on the widget's background."""

    text: Text
    under: Style | None = None

    def is_like(self, other: Line | None) -> bool:
        """Whether the two look the same."""
        if other is None or self.under != other.under:
            return False
        return self.text is other.text or self.text == other.text


class Lines(Widget):
    """A widget that consists of lines (`lines_at` or `line_at`).

    It has neither padding nor border, which would cost more per line than the text. Use a margin
    instead.

    Attributes:
        frame: What to draw.
    """

    ALLOW_SELECT = False
    # `var`: a new frame redraws what it changes (`redraw`), not everything.
    frame: var[Frame | None] = var[Frame | None](None)

    def __init__(self, *children: Widget, **options: Any) -> None:
        super().__init__(*children, **options)
        self._last_lines: dict[int, Line] = {}
        self._strips: dict[int, Strip] = {}
        self._ground: object = None

    def line_at(self, y: int) -> Line:
        """The line at this place of the screen, 0 being the widget's first."""
        (found,) = self.lines_at((y,))
        return found

    def lines_at(self, ys: Iterable[int]) -> list[Line]:
        """The lines at these places. A subclass defines this or `line_at`."""
        return [self.line_at(y) for y in ys]

    def watch_frame(self) -> None:
        """New data."""
        self.redraw()

    def redraw(self) -> None:
        """Redraws the lines that have changed since they were drawn."""
        if not self.is_attached or not self.is_on_screen:
            self._forget()  # nothing drawn before may show up again
            return
        size, last = self.size, self._last_lines
        now = enumerate(self.lines_at(range(size.height)))
        fresh = {y: found for y, found in now if not found.is_like(last.get(y))}
        if fresh:
            super().refresh(*(Region(0, y, size.width, 1) for y in fresh))
            for y, found in fresh.items():
                last[y] = found
                self._strips.pop(y, None)

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        """See Textual: everything is redrawn."""
        self._forget()
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def _forget(self) -> None:
        self._last_lines = {}
        self._strips = {}

    def render_lines(self, crop: Region) -> list[Strip]:
        """The strips of that part of the widget."""
        width, style = self.outer_size.width, self.visual_style.rich_style
        if self._ground != (width, style):
            self._ground = (width, style)
            self._forget()
        strips = [self._strips.get(y) or self._strip(y, width, style) for y in crop.line_range]
        if crop.column_span == (0, width):
            return strips
        return [strip.crop(*crop.column_span) for strip in strips]

    def _strip(self, y: int, width: int, ground: Style) -> Strip:
        found = self._last_lines.get(y)
        if found is None:
            found = self._last_lines[y] = self.line_at(y)
        strip = _filtered(self, strip_of(found.text, width, ground, under=found.under))
        self._strips[y] = strip
        return strip


class Ground(Widget):
    """A container of which only the background shows, where no other widget covers it.

    Textual renders it whole with every line that changes on it.
    """

    def render_lines(self, crop: Region) -> list[Strip]:
        """Blank lines."""
        strip = Strip.blank(crop.width, self.visual_style.rich_style)
        return [_filtered(self, strip)] * crop.height


def _filtered(widget: Widget, strip: Strip) -> Strip:
    for each in widget.get_line_filters():
        # Palettes have true colours only; looking for others takes longer than drawing.
        if not isinstance(each, ANSIToTruecolor):
            strip = strip.apply_filter(each, widget.background_colors[1])
    return strip
