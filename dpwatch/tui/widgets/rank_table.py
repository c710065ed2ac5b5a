"""The overview's table: a row per rank or device, under a heading that stays on top."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import var

from dpwatch.run.model.snapshot import Rank, Run, RunView
from dpwatch.tui.draw.metrics import by_metric
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.line_widget import Line
from dpwatch.tui.snapshots.frame import named_rows
from dpwatch.tui.widgets.rank_columns import (
    SORTS,
    Columns,
    Scale,
    columns_for,
    head_line,
    matches,
    row_lines,
)
from dpwatch.tui.widgets.rank_list import Key, RankList

ROOMY, MEDIUM, COMPACT = 3, 2, 1
"""Lines per row: with details and a blank, with details, bare."""


class RankTable(RankList):
    """Can be sorted by its columns and filtered."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("full_stop", "sort(1)", "Sort", key_display=", ."),
        Binding("comma", "sort(-1)", "Sort by the previous column", show=False),
        Binding("r", "reverse", "Reverse", show=False),
    ]
    terms: var[str] = var("")
    order: var[tuple[str, bool]] = var(("", False))
    """Title of the column to sort by, "" for the ranks' own order; whether it is reversed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._row_texts: dict[tuple[int, int, bool, Palette], list[Text]] = {}
        self._row_layout = Columns(columns=(), gap=1)
        self._named: dict[Key, str] = {}
        self._scale = Scale(step_ms=None, peak_bytes=None, capacity=False)

    @property
    def row_height(self) -> int:
        """The most lines per row with which all rows fit."""
        room = self.size.height - 1
        for lines in (ROOMY, MEDIUM):
            if len(self.rows) * lines - (lines == ROOMY) <= room:
                return lines
        return COMPACT

    def watch_terms(self) -> None:
        """Another filter."""
        self.relayout()

    def watch_order(self) -> None:
        """Another order."""
        self.relayout()

    def action_sort(self, by: int) -> None:
        """Sort by the next or previous column on screen that has a figure."""
        titles = ["", *(c.title for c in self._row_layout.columns if c.title in SORTS)]
        at = titles.index(self.order[0]) if self.order[0] in titles else 0
        self.order = (titles[(at + by) % len(titles)], False)

    def action_reverse(self) -> None:
        """Reverse the order."""
        self.order = (self.order[0], not self.order[1])

    def choose(self, run: Run) -> list[Rank]:
        """The rows that the filter lets through, sorted."""
        terms = self.terms.casefold().split()
        rows = [rank for rank in run.ranks if not terms or matches(rank, terms)]
        return by_metric(rows, SORTS.get(self.order[0]), reverse=self.order[1])

    def lay_out(self, view: RunView) -> int:
        """Choose the columns. Returns: how many lines the rows take."""
        self._row_texts.clear()
        self._named = named_rows(view.run)
        self._scale = Scale.of(view.run)
        self._row_layout = columns_for(view.run, self.body_width)
        return len(self.rows) * self.row_height

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The columns' titles."""
        return [head_line(view.run, self._row_layout, colors, *self.order)]

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """None."""
        return []

    def body(self, view: RunView, index: int, width: int, colors: Palette) -> Line:
        """A line of a row, or of what is said where there is none."""
        height = self.row_height
        number, part = divmod(index, height)
        if number >= len(self.rows):
            return Line(self._blank(index, colors))
        chosen = number == self.cursor
        lines = self._row(number, height, chosen, colors)
        # The cursor lies beneath the row: bars keep their own background.
        shaded = chosen and part < min(height, MEDIUM)
        return Line(lines[part], colors.cursor if shaded else None)

    def span(self, index: int) -> tuple[int, int]:
        """A row's lines."""
        return index * self.row_height, (index + 1) * self.row_height

    def at(self, line: int, x: int) -> int | None:
        """The row there."""
        return super().at(line // self.row_height, x)

    def _row(self, index: int, height: int, chosen: bool, colors: Palette) -> list[Text]:
        """A row's lines, drawn together and once."""
        key = (index, height, chosen, colors)
        if key not in self._row_texts:
            self._row_texts[key] = row_lines(
                self.rows[index],
                self._row_layout,
                self._scale,
                colors,
                height=height,
                chosen=chosen,
                named=self._named.get((self.rows[index].rank, self.rows[index].device), ""),
            )
        return self._row_texts[key]

    def _blank(self, index: int, colors: Palette) -> Text:
        if self.rows or index != 1 or not self.terms:
            return Text()
        return Text(f"  no device matches “{self.terms}”: esc clears the filter", colors.muted)

    def select(self, key: Key) -> None:
        """Put the cursor on a device and scroll to it."""
        super().select(key)
        if self.rows:
            self.reveal()

    def on_click(self, event: events.Click) -> None:
        """Choose a row, or open the chosen one; on a heading, sort by it or reverse the order."""
        title = event.style.meta.get("sort")
        at = event.get_content_offset(self)
        if title is not None:
            self.order = (title, not self.order[1] if title == self.order[0] else False)
        elif at is not None:
            self.pick(at.x, at.y)
