"""The findings as a list with a cursor."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.alerts.entries import alert_lines, entries
from dpwatch.tui.widgets.base import Chosen, Scrolling, palette_of


class Alerts(Scrolling):
    """All runs' findings, active and resolved, with a cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "Open")]
    cursor: reactive[int] = reactive(0)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tops: list[int] = []

    @property
    def chosen_run(self) -> str | None:
        """The run of the finding under the cursor."""
        found = entries(self.frame.snapshot) if self.frame else []
        return found[min(self.cursor, len(found) - 1)].view.run.run_id if found else None

    def paint_key(self) -> object:
        """Which one is chosen."""
        return self.cursor

    def watch_cursor(self) -> None:
        """Mark it."""
        self.relayout()

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All of them, remembering where each begins."""
        found = entries(frame.snapshot)
        cursor = min(self.cursor, len(found) - 1)
        lines, self._tops = alert_lines(found, frame.snapshot, cursor, width, palette_of(self))
        return lines

    def action_move(self, by: int) -> None:
        """To the next or an earlier one."""
        self._go(self.cursor + by)

    def action_move_end(self, by: int) -> None:
        """To the first or the last."""
        self._go(0 if by < 0 else len(self._tops) - 1)

    def action_move_page(self, by: int) -> None:
        """Some further."""
        self._go(self.cursor + 3 * by)

    def _go(self, index: int) -> None:
        if self._tops:
            self.cursor = max(min(index, len(self._tops) - 1), 0)
            self.scroll_to(y=self._tops[self.cursor], animate=False)

    def on_click(self, event: events.Click) -> None:
        """Choose the one under the pointer, or open the chosen one."""
        row = event.y + self.scroll_offset.y
        below = [index for index, top in enumerate(self._tops) if top <= row < len(self.lines())]
        if below and below[-1] == self.cursor:
            self.action_open()
        elif below:
            self.cursor = below[-1]

    def copied(self) -> str:
        """The one under the cursor."""
        if not self._tops:
            return super().copied()
        index = min(self.cursor, len(self._tops) - 1)
        ends = [*self._tops[1:], len(self.lines())]
        lines = self.lines()[self._tops[index] : ends[index]]
        return "\n".join(line.plain.rstrip() for line in lines).rstrip()

    def action_open(self) -> None:
        """Go to its run, and to the rank if it concerns only one."""
        found = entries(self.frame.snapshot) if self.frame else []
        if not found:
            return
        entry = found[min(self.cursor, len(found) - 1)]
        run = entry.view.run
        keys = [(r.rank, r.device) for r in run.ranks if r.rank in entry.ranks[:1]]
        self.post_message(Chosen(run.run_id, keys[0] if keys else None))
