"""The overview's table: a row a rank or device, drawn only where it is visible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.reactive import var
from textual.scroll_view import ScrollView

from dpwatch.run.model.snapshot import Rank, Run
from dpwatch.tui.draw.metrics import by_metric
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.line_widget import Line, Lines
from dpwatch.tui.snapshots.frame import named_rows
from dpwatch.tui.widgets.base import EMPTY, MOVES, Chosen, palette_of
from dpwatch.tui.widgets.rank_columns import (
    SORTS,
    Columns,
    Scale,
    columns_for,
    head_line,
    matches,
    row_lines,
)

ROOMY, MEDIUM, COMPACT = 3, 2, 1
"""Lines a row takes: with details and a blank, with details, bare."""

Key = tuple[int, str]


class RankTable(ScrollView, Lines, can_focus=True):
    """Rows with a cursor that stays on its device, under a heading that stays on top."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
        Binding("enter", "open", "Open"),
        Binding("full_stop", "sort(1)", "Sort", key_display=", ."),
        Binding("comma", "sort(-1)", "Sort by the column before", show=False),
        Binding("r", "reverse", "Reverse", show=False),
    ]
    terms: var[str] = var("")
    cursor: var[int] = var(0)
    order: var[tuple[str, bool]] = var(("", False))
    """Title of the column the rows are sorted by, "" for the ranks' own order; turned round."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[Rank] = []
        self._key: Key | None = None
        self._row_texts: dict[tuple[int, int, bool, Palette], list[Text]] = {}
        self._row_layout = Columns(columns=(), gap=1)
        self._named: dict[Key, str] = {}
        self._scale = Scale(step_ms=None, peak_bytes=None, capacity=False)

    @property
    def run(self) -> Run | None:
        """The run on screen."""
        view = self.frame.view if self.frame else None
        return view.run if view else None

    @property
    def rows(self) -> list[Rank]:
        """The rows the filter lets through."""
        return self._rows

    @property
    def row_height(self) -> int:
        """As many lines a row as all rows find room for."""
        room = self.size.height - 1
        for lines in (ROOMY, MEDIUM):
            if len(self._rows) * lines - (lines == ROOMY) <= room:
                return lines
        return COMPACT

    def watch_frame(self) -> None:
        """New numbers: the cursor stays on its device."""
        self.relayout()

    def watch_terms(self) -> None:
        """Another filter."""
        self.relayout()

    def watch_order(self) -> None:
        """Sorted anew."""
        self.relayout()

    def _heading(self, run: Run, colors: Palette) -> Text:
        return head_line(run, self._row_layout, colors, *self.order)

    def action_sort(self, by: int) -> None:
        """By the next column on screen that has a figure, or the one before."""
        titles = ["", *(c.title for c in self._row_layout.columns if c.title in SORTS)]
        at = titles.index(self.order[0]) if self.order[0] in titles else 0
        self.order = (titles[(at + by) % len(titles)], False)

    def action_reverse(self) -> None:
        """The other way round."""
        self.order = (self.order[0], not self.order[1])

    def on_resize(self) -> None:
        """Columns and row heights follow the room there is."""
        self.relayout()

    def on_show(self) -> None:
        """Catch up with what came while hidden."""
        self.relayout()

    def relayout(self) -> None:
        """Find the rows, the columns and the cursor for what is to be shown now."""
        if not (self.is_attached and self.is_on_screen):
            return
        self._row_texts.clear()
        run = self.run
        terms = self.terms.casefold().split()
        rows = list(run.ranks) if run else []
        if terms:
            rows = [rank for rank in rows if matches(rank, terms)]
        self._rows = by_metric(rows, SORTS.get(self.order[0]), reverse=self.order[1])
        if run is not None:
            self._named = named_rows(run)
            self._scale = Scale.of(run)
            self._row_layout = columns_for(run, self._body_width)
        keys = [(rank.rank, rank.device) for rank in self._rows]
        if self._key in keys:
            self.cursor = keys.index(self._key)
        else:
            self.cursor = max(min(self.cursor, len(keys) - 1), 0)
        self.virtual_size = Size(self._body_width, 1 + len(self._rows) * self.row_height)
        self.redraw()

    @property
    def _body_width(self) -> int:
        return max(self.size.width - 1, 1)  # the last column is the scroll bar's

    def lines_at(self, ys: Iterable[int]) -> list[Line]:
        """The heading, or lines of visible rows."""
        run, colors = self.run, palette_of(self)
        height, above = self.row_height, self.scroll_offset.y
        return [EMPTY if run is None else self._line(run, y, above, height, colors) for y in ys]

    def _line(self, run: Run, y: int, above: int, height: int, colors: Palette) -> Line:
        if y == 0:
            return Line(self._heading(run, colors))
        index, part = divmod(y - 1 + above, height)
        if index >= len(self._rows):
            return Line(self._blank(y))
        chosen = index == self.cursor
        lines = self._row(index, height, chosen, colors)
        # The cursor lies beneath the row: bars keep their own background.
        shaded = chosen and part < min(height, MEDIUM)
        return Line(lines[part], colors.cursor if shaded else None)

    def _row(self, index: int, height: int, chosen: bool, colors: Palette) -> list[Text]:
        """A row's lines, drawn once for all of them."""
        key = (index, height, chosen, colors)
        if key not in self._row_texts:
            self._row_texts[key] = row_lines(
                self._rows[index],
                self._row_layout,
                self._scale,
                colors,
                height=height,
                chosen=chosen,
                named=self._named.get((self._rows[index].rank, self._rows[index].device), ""),
            )
        return self._row_texts[key]

    def _blank(self, y: int) -> Text:
        if self._rows or y != 2:
            return Text()
        note = f"  no device matches “{self.terms}”: esc clears the filter" if self.terms else ""
        return Text(note, style=palette_of(self).muted)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        if not self._rows:
            return
        self.cursor = max(min(self.cursor + by, len(self._rows) - 1), 0)
        row = self._rows[self.cursor]
        self._key = (row.rank, row.device)
        self._reveal()
        self.redraw()

    def action_move_page(self, by: int) -> None:
        """Move it by a screenful."""
        self.action_move(by * max((self.size.height - 1) // self.row_height, 1))

    def action_move_end(self, by: int) -> None:
        """Move it to the first or the last row."""
        self.action_move(by * len(self._rows))

    def _reveal(self) -> None:
        top, height = self.cursor * self.row_height, self.row_height
        low, room = self.scroll_offset.y, self.size.height - 1
        if top < low:
            self.scroll_to(y=top, animate=False)
        elif top + height > low + room:
            self.scroll_to(y=top + height - room, animate=False)

    def select(self, key: Key) -> None:
        """Put the cursor on a device, where it is shown."""
        self._key = key
        self.relayout()
        self._reveal()

    def copied(self) -> str:
        """The heading and the row under the cursor, as text for the clipboard."""
        run, colors = self.run, palette_of(self)
        if run is None or not self._rows:
            return ""
        lines = [self._heading(run, colors)]
        lines += self._row(self.cursor, self.row_height, True, colors)
        return "\n".join(each.plain.rstrip() for each in lines).rstrip()

    def action_open(self) -> None:
        """Open the row under the cursor."""
        run = self.run
        if run is not None and self._rows:
            row = self._rows[self.cursor]
            self.post_message(Chosen(run.run_id, (row.rank, row.device)))

    def on_click(self, event: events.Click) -> None:
        """A click puts the cursor there; on the row it is on already, it opens it.

        On a heading it sorts by that column, and turns the rows round where they are so sorted.
        """
        title = event.style.meta.get("sort")
        if title is not None:
            self.order = (title, not self.order[1] if title == self.order[0] else False)
            return
        index = (event.y - 1 + self.scroll_offset.y) // self.row_height
        if event.y < 1 or not 0 <= index < len(self._rows):
            return
        if index == self.cursor:
            self.action_open()
        else:
            self.action_move(index - self.cursor)
