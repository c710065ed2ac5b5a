"""The comparison as a widget: a cursor over its rows, sorting, and the metric drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.compare.panel import Choice, Drawn, draw, metrics_of, sorts_of
from dpwatch.tui.widgets.base import Chosen, Scrolling, palette_of


class Compare(Scrolling):
    """The strategies run so far: sort, filter, change the metric, open."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # The panel's head shows these three; the footer of 80 cells has no room for them.
        Binding("m", "metric(1)", "Metric", show=False),
        Binding("M", "metric(-1)", "Previous metric", show=False),
        Binding("full_stop", "sort(1)", "Sort", show=False),
        Binding("comma", "sort(-1)", "Sort by the previous column", show=False),
        Binding("r", "reverse", "Reverse", show=False),
        Binding("enter", "open", "Open"),
    ]
    choice: reactive[Choice] = reactive(Choice())

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._drawn = Drawn(lines=[], first_row=0, run_ids=())

    @property
    def terms(self) -> str:
        """The filter."""
        return " ".join(self.choice.terms)

    @terms.setter
    def terms(self, text: str) -> None:
        self.choice = replace(self.choice, terms=tuple(text.casefold().split()))

    @property
    def cursor(self) -> int:
        """The row under the cursor; the cursor stays on its run when rows are sorted."""
        ids = self._drawn.run_ids
        return ids.index(self.choice.run_id) if self.choice.run_id in ids else 0

    def paint_key(self) -> object:
        """What has been chosen."""
        return self.choice

    def watch_choice(self) -> None:
        """Draw it so."""
        self.relayout()

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All of it; it scrolls."""
        self._drawn = draw(frame, width, height, palette_of(self), self.choice)
        return self._drawn.lines

    def compare_by(self, name: str) -> None:
        """Draw the metric of that name, if there is one."""
        names = [each.name for each in metrics_of(self.frame)]
        if name in names:
            self.choice = replace(self.choice, metric=names.index(name))

    def action_metric(self, by: int) -> None:
        """Draw another metric's bars."""
        number = len(metrics_of(self.frame))
        self.choice = replace(self.choice, metric=(self.choice.metric + by) % number)

    def action_sort(self, by: int) -> None:
        """Sort by the next column, or the one before."""
        sorts = sorts_of(self.frame)
        at = (sorts.index(self.choice.sort) + by) % len(sorts)
        self.choice = replace(self.choice, sort=sorts[at], reverse=False)

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self.choice = replace(self.choice, reverse=not self.choice.reverse)

    def action_move(self, by: int) -> None:
        """Move to another row; past the last row, scroll."""
        ids = self._drawn.run_ids
        beyond = self.cursor == len(ids) - 1 if by > 0 else self._is_below_rows
        if beyond:
            super().action_move(by)
        else:
            self._go(self.cursor + by)

    @property
    def _is_below_rows(self) -> bool:
        return self.scroll_offset.y > self._drawn.first_row

    def action_move_end(self, by: int) -> None:
        """Move to the first row, or scroll to the end."""
        self._go(0 if by < 0 else len(self._drawn.run_ids) - 1)
        super().action_move_end(by)

    def _go(self, index: int) -> None:
        ids = self._drawn.run_ids
        if not ids:
            return
        index = max(min(index, len(ids) - 1), 0)
        self.choice = replace(self.choice, run_id=ids[index])
        line = self._drawn.first_row + index
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.size.height - 1
        if index == 0:
            self.scroll_to(y=0, animate=False)
        elif not top <= line <= bottom:
            self.scroll_to(y=line - (0 if line < top else self.size.height - 1), animate=False)

    def action_open(self) -> None:
        """Go to the run's own screens."""
        ids = self._drawn.run_ids
        if ids:
            self.post_message(Chosen(ids[self.cursor], None))

    def on_click(self, event: events.Click) -> None:
        """Draw the clicked metric; choose a row, or open the chosen one.

        A heading sorts by its column, or reverses the order if already sorted by it.
        """
        metric, sort = event.style.meta.get("metric"), event.style.meta.get("sort")
        if metric is not None:
            self.choice = replace(self.choice, metric=metric)
            return
        if sort is not None:
            again = sort == self.choice.sort
            self.choice = replace(self.choice, sort=sort, reverse=again and not self.choice.reverse)
            return
        at = event.get_content_offset(self)
        index = -1 if at is None else at.y + self.scroll_offset.y - self._drawn.first_row
        if 0 <= index < len(self._drawn.run_ids):
            if index == self.cursor:
                self.action_open()
            else:
                self._go(index)
