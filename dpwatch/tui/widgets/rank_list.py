"""Rows of ranks that scroll between a fixed head and foot, with a cursor on one rank."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.reactive import var
from textual.scroll_view import ScrollView

from dpwatch.run.model.snapshot import Rank, Run, RunView
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.line_widget import Line, Lines
from dpwatch.tui.widgets.base import EMPTY, MOVES, Chosen, palette_of

Key = tuple[int, str]


class RankList(ScrollView, Lines, can_focus=True):
    """What views of many ranks share; only lines on the screen are drawn.

    A subclass chooses the ranks (`choose`), lays them out (`lay_out`), and draws the head, the foot
    and single lines of the body. The cursor stays on its rank while rows come and go.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*MOVES, Binding("enter", "open", "Open")]
    cursor: var[int] = var(0)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: list[Rank] = []
        self._key: Key | None = None
        self._pinned_for: object = None
        self._head: list[Text] = []
        self._foot: list[Text] = []

    # What a subclass decides.

    def choose(self, run: Run) -> list[Rank]:
        """The ranks to draw, in order."""
        return list(run.ranks)

    def lay_out(self, view: RunView) -> int:
        """Lay `rows` out. Returns: how many lines they take."""
        raise NotImplementedError

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """Lines that stay on top; their number doesn't depend on the cursor."""
        raise NotImplementedError

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """Lines that stay at the bottom."""
        raise NotImplementedError

    def body_line(self, view: RunView, index: int, width: int, colors: Palette) -> Text:
        """One line of the rows."""
        raise NotImplementedError

    def body(self, view: RunView, index: int, width: int, colors: Palette) -> Line:
        """The same, with what lies beneath it."""
        return Line(self.body_line(view, index, width, colors))

    def span(self, index: int) -> tuple[int, int]:
        """First line of a rank and the line after its last."""
        return index, index + 1

    def at(self, line: int, x: int) -> int | None:
        """The rank at a place of the body."""
        return line if 0 <= line < len(self.rows) else None

    # What all of them share.

    @property
    def view(self) -> RunView | None:
        """The run on screen."""
        return self.frame.view if self.frame else None

    @property
    def chosen(self) -> Rank | None:
        """The rank under the cursor."""
        return self.rows[self.cursor] if self.cursor < len(self.rows) else None

    @property
    def body_width(self) -> int:
        """Cells beside the scroll bar."""
        return max(self.size.width - 1, 1)

    @property
    def body_height(self) -> int:
        """Lines between head and foot."""
        return max(self.size.height - len(self._head) - len(self._foot), 1)

    def watch_frame(self) -> None:
        """New numbers."""
        self.relayout()

    def on_resize(self) -> None:
        """Another size."""
        self.relayout()

    def on_show(self) -> None:
        """Catch up with what arrived while hidden."""
        self.relayout()

    def watch_cursor(self) -> None:
        """Mark it, and describe its rank."""
        self._pin()
        self.redraw()

    def relayout(self) -> None:
        """Compute the rows and their places for the current frame, size and filter."""
        view = self.view
        if view is None or not (self.is_attached and self.is_on_screen):
            return
        self.rows = self.choose(view.run)
        keys = [(rank.rank, rank.device) for rank in self.rows]
        if self._key in keys:
            self.cursor = keys.index(self._key)
        else:
            self.cursor = max(min(self.cursor, len(keys) - 1), 0)
        self._pin()
        lines = self.lay_out(view)
        self._pin()
        height = len(self._head) + lines + len(self._foot)
        self.virtual_size = Size(self.body_width, height)
        self.redraw()

    def _pin(self) -> None:
        view, colors = self.view, palette_of(self)
        if view is not None and self.size.width:
            self._head = self.head(view, self.body_width, colors)
            self._foot = self.foot(view, self.body_width, colors)

    def line_at(self, y: int) -> Line:
        """A line of the head, the body or the foot."""
        view, colors = self.view, palette_of(self)
        if view is None:
            return EMPTY
        if self._pinned_for != colors:  # the theme has changed
            self._pinned_for = colors
            self._pin()
        below = y - (self.size.height - len(self._foot))
        if y < len(self._head):
            return Line(self._head[y])
        if below >= 0:
            return Line(self._foot[below])
        index = y - len(self._head) + self.scroll_offset.y
        return self.body(view, index, self.body_width, colors)

    def go(self, index: int) -> None:
        """Put the cursor on a rank and scroll to it."""
        if not self.rows:
            return
        self.cursor = max(min(index, len(self.rows) - 1), 0)
        rank = self.rows[self.cursor]
        self._key = (rank.rank, rank.device)
        self.reveal()

    def reveal(self) -> None:
        """Scroll the rank under the cursor onto the screen."""
        top, bottom = self.span(self.cursor)
        low, room = self.scroll_offset.y, self.body_height
        if top < low:
            self.scroll_to(y=top, animate=False)
        elif bottom > low + room:
            self.scroll_to(y=bottom - room, animate=False)

    def action_move(self, by: int) -> None:
        """Move the cursor by rows."""
        self.go(self.cursor + by)

    def action_move_page(self, by: int) -> None:
        """Move it by a screen_buffer."""
        first, last = self.span(self.cursor)
        self.action_move(by * max(self.body_height // max(last - first, 1), 1))

    def action_move_end(self, by: int) -> None:
        """Move it to the first or the last rank."""
        self.go(0 if by < 0 else len(self.rows) - 1)

    def action_open(self) -> None:
        """Open the rank under the cursor."""
        rank, view = self.chosen, self.view
        if rank is not None and view is not None:
            self.post_message(Chosen(view.run.run_id, (rank.rank, rank.device)))

    def copied(self) -> str:
        """Head, the lines of the rank under the cursor, and foot, as text for the clipboard."""
        view, colors = self.view, palette_of(self)
        if view is None or self.chosen is None:
            return ""
        body = [
            self.body(view, index, self.body_width, colors).text
            for index in range(*self.span(self.cursor))
        ]
        lines = (each.plain.rstrip() for each in (*self._head, *body, *self._foot))
        return "\n".join(lines).rstrip()

    def select(self, key: Key) -> None:
        """Put the cursor on a rank, if it is shown."""
        self._key = key
        self.relayout()

    def pick(self, x: int, y: int) -> None:
        """A click moves the cursor; on the chosen rank, it opens it."""
        below = self.size.height - len(self._foot)
        if not len(self._head) <= y < below:
            return
        index = self.at(y - len(self._head) + self.scroll_offset.y, x)
        if index is not None and index == self.cursor:
            self.action_open()
        elif index is not None:
            self.go(index)
