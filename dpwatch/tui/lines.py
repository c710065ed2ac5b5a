"""Widgets that draw themselves line by line, and of new data only the lines that differ.

Textual draws a widget anew as a whole. Of a dashboard most lines stay as they were from one moment
to the next, and drawing one costs more than finding out that it need not be drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rich.style import Style
from rich.text import Text
from textual.geometry import Region, Size
from textual.reactive import var
from textual.strip import Strip
from textual.widget import Widget

from dpwatch.tui.frame import Frame
from dpwatch.tui.strips import strip_of

if TYPE_CHECKING:
    from typing_extensions import Self


class Line(NamedTuple):
    """A line, and the style that lies beneath it on the widget's ground."""

    text: Text
    under: Style | None = None

    def is_like(self, other: Line | None) -> bool:
        """Whether the two look the same."""
        if other is None or self.under != other.under:
            return False
        mine, its = self.text, other.text
        return mine is its or (mine == its and mine.style == its.style)


class Lines(Widget):
    """Says what each of its lines is (`line_at`).

    Attributes:
        frame: What there is to draw.
    """

    ALLOW_SELECT = False
    # `var`: a new frame draws what it changes (`redraw`), not all.
    frame: var[Frame | None] = var[Frame | None](None)

    def __init__(self, *children: Widget, **options: Any) -> None:
        super().__init__(*children, **options)
        self._standing: dict[int, Line] = {}
        self._fresh: dict[int, Line] = {}
        self._fresh_size: Size | None = None

    def line_at(self, y: int) -> Line:
        """The line at that place of the screen, 0 being the widget's first."""
        raise NotImplementedError

    def watch_frame(self) -> None:
        """New data."""
        self.redraw()

    def on_show(self) -> None:
        """Catch up with what came while hidden."""
        self.refresh()

    def redraw(self) -> None:
        """Draws the lines that are not any more what they were when they were drawn."""
        if not self.is_attached or not self.is_on_screen:
            self.refresh()  # whatever was drawn once, it is not to come up again
            return
        size, standing = self.size, self._standing
        now = {y: self.line_at(y) for y in range(size.height)}
        fresh = {y: found for y, found in now.items() if not found.is_like(standing.get(y))}
        if fresh:
            super().refresh(*(Region(0, y, size.width, 1) for y in fresh))
            self._fresh, self._fresh_size = fresh, size

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        """See Textual; what `redraw` has found is out of date then."""
        self._fresh = {}
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def render_line(self, y: int) -> Strip:
        """One line, as Textual draws it."""
        size = self.size
        known = self._fresh.pop(y, None) if size == self._fresh_size else None
        found = self._standing[y] = known or self.line_at(y)
        return strip_of(found.text, size.width, self, found.under)
