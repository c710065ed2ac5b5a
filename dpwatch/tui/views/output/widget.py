"""The ranks' output as a widget: scroll, follow, one rank or all."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView

from dpwatch.run.model.snapshot import RankOutput, RunView
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.line_widget import Line, Lines
from dpwatch.tui.views.output.lines import (
    Choice,
    Entry,
    empty_lines,
    entries,
    entry_line,
    foot_line,
    head_line,
    pieces,
    tag_width,
    text_room,
)
from dpwatch.tui.widgets.base import MOVES, palette_of

_COPIED = 1000
_EDGES = 2
"""Lines that stay: one above the output, one below."""


class Output(ScrollView, Lines, can_focus=True):
    """The ranks' output, interleaved by time; follows the newest line until scrolled up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
        Binding("left,h", "rank(-1)", "Rank", key_display="← →"),
        Binding("right,l", "rank(1)", "Only the next rank", show=False),
        Binding("t", "errors", "Err"),
        Binding("f", "follow", "Follow", show=False),
    ]
    terms: reactive[str] = reactive("")
    rank: reactive[int | None] = reactive[int | None](None)
    only_err: reactive[bool] = reactive(False)
    following: reactive[bool] = reactive(True)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.entries: list[Entry] = []
        self._ends: list[int] = []
        self._tag = 2
        self._width = 1
        self._empty: list[Text] = []
        self._made_of: object = None
        self._run_id: str | None = None
        self._moving = False

    @property
    def view(self) -> RunView | None:
        """The run on screen."""
        return self.frame.view if self.frame else None

    @property
    def choice(self) -> Choice:
        """The current choice."""
        return Choice(rank=self.rank, only_err=self.only_err, terms=self.terms)

    @property
    def body_width(self) -> int:
        """Cells beside the scroll bar."""
        return max(self.size.width - 1, 1)

    @property
    def body_height(self) -> int:
        """Lines between head and foot."""
        return max(self.size.height - _EDGES, 1)

    def watch_frame(self) -> None:
        """New lines. For another run, show all ranks and the newest line."""
        run_id = self.frame.run_id if self.frame else None
        if run_id != self._run_id:
            self._run_id, self.rank, self.following = run_id, None, True
        self.relayout()

    def watch_terms(self) -> None:
        """Other lines."""
        self.relayout()

    def watch_rank(self) -> None:
        """Other lines."""
        self.relayout()

    def watch_only_err(self) -> None:
        """Other lines."""
        self.relayout()

    def watch_following(self, following: bool) -> None:
        """Scroll to the end, and stay there."""
        if following:
            self._to_end()
        self.refresh()

    def on_resize(self) -> None:
        """Lines are broken to the width."""
        self.relayout()

    def on_show(self) -> None:
        """Catch up with what arrived while hidden."""
        self.relayout()

    def relayout(self) -> None:
        """Find the lines and their places; the top line stays, unless following."""
        view = self.view
        if view is None or not (self.is_attached and self.is_on_screen):
            return
        made_of = (_mark(view.output), self.choice, self.size, palette_of(self), view.tells_output)
        if made_of != self._made_of:
            top = self._top()
            self._made_of = made_of
            self._make(view)
            self._moving = True
            self.virtual_size = Size(self.body_width, self._rows + _EDGES)
            if top is not None and not self.following:
                self.scroll_to(y=self._row_of(top), animate=False)
            self._moving = False
        if self.following:
            self._to_end()
        self.redraw()

    def _make(self, view: RunView) -> None:
        self._tag = tag_width(view.output)
        self._width = self.body_width
        room = text_room(self._width, self._tag)
        self.entries = entries(view.output, self.choice)
        self._ends = list(accumulate(len(pieces(each[2].text, room)) for each in self.entries))
        self._empty = []
        if not self.entries:
            self._empty = empty_lines(view, self.choice, self.body_width, palette_of(self))

    @property
    def _rows(self) -> int:
        return self._ends[-1] if self._ends else len(self._empty)

    def _top(self) -> tuple[Entry, int] | None:
        """The line at the top of the screen, and which part of it."""
        return self._entry_at(self.scroll_offset.y)

    def _entry_at(self, row: int) -> tuple[Entry, int] | None:
        index = bisect_right(self._ends, row)
        if index >= len(self.entries):
            return None
        return self.entries[index], row - (self._ends[index - 1] if index else 0)

    def _row_of(self, top: tuple[Entry, int]) -> int:
        """A line's current place; if it is gone, that of the next one."""
        entry, part = top
        index = first = bisect_left(self.entries, entry[0], key=itemgetter(0))
        while index < len(self.entries) and self.entries[index][0] == entry[0]:
            if self.entries[index] == entry:
                return self._start(index) + part
            index += 1
        return self._start(first)

    def _start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0

    def _to_end(self) -> None:
        if self.is_attached and self.is_on_screen:
            self._moving = True
            # Forced: the scroll bar, without which nothing scrolls, may not exist yet.
            self.scroll_to(y=self.max_scroll_y, animate=False, force=True)
            self.call_after_refresh(self._tell_bar)
            self._moving = False

    def _tell_bar(self) -> None:
        """A hidden scroll bar has missed its position."""
        self.vertical_scrollbar.position = self.scroll_y

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolling up stops following; reaching the end follows the newest line again."""
        super().watch_scroll_y(old_value, new_value)
        if not self._moving and self._made_of is not None:
            self.following = new_value >= self.max_scroll_y

    def line_at(self, y: int) -> Line:
        """The head, a line of the output, or the foot."""
        view, colors, width = self.view, palette_of(self), self.body_width
        text = Text()
        if view is None or (not view.output and not 0 < y <= len(self._empty)):
            pass
        elif y == 0:
            text = head_line(view, self.choice, len(self.entries), width, colors)
        elif y == self.size.height - 1:
            text = foot_line(view, self.choice, self._below, width, colors)
        else:
            row = y - 1 + self.scroll_offset.y
            found = self._entry_at(row)
            if found is not None:
                entry, part = found
                # As wide as it was wrapped for: a resized screen is drawn once before `on_resize`.
                text = entry_line(entry, part, self._width, self._tag, self.terms, colors)
            elif row < len(self._empty):
                text = self._empty[row]
        return Line(text)

    @property
    def _below(self) -> int | None:
        """Lines of output under the screen's last one, None while the newest is followed."""
        if self.following:
            return None
        last = self.scroll_offset.y + self.body_height
        return max(len(self.entries) - bisect_right(self._ends, last), 1)

    def action_move(self, by: int) -> None:
        """Scroll by lines."""
        self.scroll_to(y=self.scroll_offset.y + by, animate=False)

    def action_move_page(self, by: int) -> None:
        """Scroll by a screen_buffer."""
        self.action_move(by * max(self.body_height - 1, 1))

    def action_move_end(self, by: int) -> None:
        """Scroll to the oldest line, or to the newest and follow it."""
        if by < 0:
            self.scroll_to(y=0, animate=False)
        else:
            self.action_follow()

    def action_follow(self) -> None:
        """Follow the newest line."""
        self.following = True

    def action_rank(self, by: int) -> None:
        """Show only the next or previous rank that has printed; past the last one, all."""
        choices: list[int | None] = [None]
        choices += [each.rank for each in self.view.output] if self.view else []
        at = choices.index(self.rank) if self.rank in choices else 0
        self.rank = choices[(at + by) % len(choices)]

    def action_errors(self) -> None:
        """Show only stderr, or both streams."""
        self.only_err = not self.only_err

    def on_click(self, event: events.Click) -> None:
        """Show only the clicked line's rank; if it is already alone, all."""
        at = event.get_content_offset(self)
        if at is None or not 0 < at.y < self.size.height - 1:
            return
        found = self._entry_at(at.y - 1 + self.scroll_offset.y)
        if found is not None:
            self.rank = found[0][1] if self.rank is None else None

    def copied(self) -> str:
        """The last thousand chosen lines, unwrapped."""
        view, colors = self.view, palette_of(self)
        if view is None or not self.entries:
            return ""
        wide = 1 << 16
        lines = [
            entry_line(each, 0, wide, self._tag, "", colors) for each in self.entries[-_COPIED:]
        ]
        return "\n".join(each.plain.rstrip() for each in lines)


def _mark(output: Sequence[RankOutput]) -> object:
    """Differs if lines have been added, dropped or changed."""
    return [
        (each.rank, len(each.lines) + each.let_go, each.let_go, each.lines[-2:]) for each in output
    ]
