"""Thin widgets: each gets lines from a pure function and draws the visible ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.widget import Widget

from dpwatch.tui.draw.palette import Palette, palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.line_widget import Line, Lines
from dpwatch.tui.snapshots.frame import Frame


def palette_of(widget: Widget) -> Palette:
    """The palette of the theme the app shows now."""
    app = widget.app
    key = (app.theme, app.no_color)
    found = _PALETTES.get(key)
    if found is None:  # looking up a theme takes longer than drawing a line
        theme = app.current_theme
        found = _PALETTES[key] = palette(theme.dark, app.no_color, theme.name)
    return found


_PALETTES: dict[tuple[str, bool], Palette] = {}


EMPTY = Line(Text())


class Painted(Lines):
    """Draws the lines of `paint()`, painted again when the frame, size or theme changes."""

    _key: object = None
    _lines: list[Text]

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """The lines to draw, `width` cells wide."""
        raise NotImplementedError

    def lines(self) -> list[Text]:
        """The lines of `paint` for the current frame, size and theme."""
        width, height = self.size
        key = (self.frame, width, height, palette_of(self))
        if self._key is None or self._key != key:
            self._key = key
            self._lines = self.paint(self.frame, width, height) if self.frame else []
        return self._lines

    def lines_at(self, ys: Iterable[int]) -> list[Line]:
        """Lines of the widget."""
        lines = self.lines()
        return [Line(lines[y]) if y < len(lines) else EMPTY for y in ys]


MOVES: tuple[BindingType, ...] = (
    Binding("up,k", "move(-1)", "Up", show=False),
    Binding("down,j", "move(1)", "Down", show=False),
    Binding("pageup", "move_page(-1)", "Page up", show=False),
    Binding("pagedown", "move_page(1)", "Page down", show=False),
    Binding("home,g", "move_end(-1)", "Top", show=False),
    Binding("end,G", "move_end(1)", "Bottom", show=False),
)


class Scrolling(ScrollView, Lines, can_focus=True):
    """Lines of a pure function, more than fit: keys and wheel scroll them."""

    BINDINGS: ClassVar[list[BindingType]] = [*MOVES]

    _key: object = None
    _lines: list[Text]

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All lines, `width` cells wide."""
        raise NotImplementedError

    def paint_key(self) -> object:
        """What the lines depend on besides frame, size and theme."""
        return None

    def watch_frame(self) -> None:
        """Paint again if shown; a hidden panel does so when it is shown."""
        self.relayout()

    def on_resize(self) -> None:
        """Lines are broken to the width."""
        self.relayout()

    def on_show(self) -> None:
        """Catch up with what arrived while hidden."""
        self.relayout()

    def relayout(self) -> None:
        """Tell Textual the current number of lines."""
        if self.is_attached and self.is_on_screen:
            self.virtual_size = Size(self.body_width, max(len(self.lines()), 1))
            self.redraw()

    @property
    def body_width(self) -> int:
        """Cells beside the scroll bar, which always has room."""
        return max(self.size.width - 1, 1)

    def lines(self) -> list[Text]:
        """What `paint` gives for now's frame, size and theme."""
        width, height = self.body_width, self.size.height
        key = (self.frame, width, height, palette_of(self), self.paint_key())
        if self._key is None or self._key != key:
            self._key = key
            self._lines = self.paint(self.frame, width, height) if self.frame else []
        return self._lines

    def lines_at(self, ys: Iterable[int]) -> list[Line]:
        """Lines that are visible."""
        lines, above = self.lines(), self.scroll_offset.y
        return [Line(lines[y + above]) if y + above < len(lines) else EMPTY for y in ys]

    def copied(self) -> str:
        """All of it as text, for the clipboard."""
        return "\n".join(line.plain.rstrip() for line in self.lines())

    def action_move(self, by: int) -> None:
        """Scroll by lines."""
        self.scroll_to(y=self.scroll_offset.y + by, animate=False)

    def action_move_page(self, by: int) -> None:
        """Scroll by a screen_buffer."""
        self.action_move(by * max(self.size.height - 1, 1))

    def action_move_end(self, by: int) -> None:
        """Scroll to an end."""
        self.scroll_to(y=0 if by < 0 else self.virtual_size.height, animate=False)


class Chosen(Message):
    """A row was opened.

    Attributes:
        run_id: Its run.
        key: The row's `(rank, device)`, None for the run as a whole.
    """

    def __init__(self, run_id: str, key: tuple[int, str] | None) -> None:
        self.run_id = run_id
        self.key = key
        super().__init__()
