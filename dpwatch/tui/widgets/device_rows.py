"""A row per device with a bar and figures: sorted, filtered, with a cursor."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from dpwatch.run.model.snapshot import Rank, Run, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw.metrics import Metric, by_metric
from dpwatch.tui.draw.palette import STATE_GLYPHS, TELLING_STATES, Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line
from dpwatch.tui.widgets.rank_columns import matches
from dpwatch.tui.widgets.rank_list import RankList

SORT_BINDINGS: tuple[BindingType, ...] = (
    Binding("full_stop", "sort(1)", "Sort", key_display=", ."),
    Binding("comma", "sort(-1)", "Sort by the previous figure", show=False),
    Binding("r", "reverse", "Reverse", show=False),
)
SORT_KEYS = (
    (",  .", "sort by the previous or next figure, largest first"),
    ("r", "reverse"),
    ("/", "show only devices with these words in name, state or host"),
)


def state_sign(rank: Rank, palette: Palette) -> tuple[str, Style]:
    """A cell for the state of a rank that is not simply running, blank for others."""
    if rank.state not in TELLING_STATES:
        return " ", palette.text
    return STATE_GLYPHS[rank.state], palette.state(rank.state)


class DeviceRows(RankList):
    """What views with a bar per device share. A subclass draws a row's lines."""

    BINDINGS: ClassVar[list[BindingType]] = [*SORT_BINDINGS]
    SORTS: ClassVar[tuple[Metric, ...]] = ()
    MOST_LINES: ClassVar[int] = 3
    terms: reactive[str] = reactive("")
    order: reactive[tuple[int, bool]] = reactive((-1, False))
    """Index in `SORTS`, -1 for the ranks' own order; whether it is reversed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.row_height = 1

    def row_line(self, view: RunView, rank: Rank, part: int, width: int, colors: Palette) -> Text:
        """One of a row's lines, without the cursor's mark."""
        raise NotImplementedError

    @property
    def sorted_by(self) -> Metric | None:
        """The figure the rows are sorted by."""
        return self.SORTS[self.order[0]] if self.order[0] >= 0 else None

    def sort_note(self) -> str:
        """How the rows are sorted and filtered, for the head."""
        by = self.sorted_by.title if self.sorted_by else "rank"
        arrow = "▲" if self.order[1] != (self.sorted_by is None) else "▼"
        note = f"sorted by {by} {arrow}"
        return f"{note} · only “{clean(self.terms, 30)}”" if self.terms else note

    def watch_terms(self) -> None:
        """Another filter."""
        self.relayout()

    def watch_order(self) -> None:
        """Another order."""
        self.relayout()

    def choose(self, run: Run) -> list[Rank]:
        """The rows the filter lets through, sorted."""
        terms = self.terms.casefold().split()
        rows = [rank for rank in run.ranks if matches(rank, terms)]
        return by_metric(rows, self.sorted_by, reverse=self.order[1])

    def lay_out(self, view: RunView) -> int:
        """The most lines per row with which all rows fit."""
        heights = range(self.MOST_LINES, 0, -1)
        room = self.body_height
        self.row_height = next((h for h in heights if len(self.rows) * h <= room), 1)
        return len(self.rows) * self.row_height

    def body_line(self, view: RunView, index: int, width: int, colors: Palette) -> Text:
        """A row's line, after the cursor's mark."""
        number, part = divmod(index, self.row_height)
        if number >= len(self.rows):
            if index == 1 and not self.rows and self.terms:
                return line((f"  no device matches “{clean(self.terms, 60)}”", colors.muted))
            return Text()
        rank = self.rows[number]
        mark = "▸" if part == 0 and number == self.cursor else " "
        row = self.row_line(view, rank, part, width - 2, colors)
        sign = state_sign(rank, colors) if part == 0 else (" ", colors.text)
        return line((mark, colors.accent), sign, fitted(row, width - 2))

    def span(self, index: int) -> tuple[int, int]:
        """A row's lines."""
        return index * self.row_height, (index + 1) * self.row_height

    def at(self, line: int, x: int) -> int | None:
        """The row there."""
        number = line // self.row_height
        return number if 0 <= number < len(self.rows) else None

    def action_sort(self, by: int) -> None:
        """Sort by the next or previous figure."""
        number = len(self.SORTS) + 1
        self.order = ((self.order[0] + 1 + by) % number - 1, False)

    def action_reverse(self) -> None:
        """Reverse the order."""
        self.order = (self.order[0], not self.order[1])

    def on_click(self, event: events.Click) -> None:
        """Choose a row, or open the chosen one; on the heading, sort by the next figure."""
        at = event.get_content_offset(self)
        if at is not None and at.y == len(self._head) - 1:
            self.action_sort(1)
        elif at is not None:
            self.pick(at.x, at.y)
