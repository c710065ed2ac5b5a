"""The panel of Python stacks, opened by `s`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from textual.reactive import reactive

from dpwatch.run.derive.stack_text import run_text
from dpwatch.run.model.snapshot import RunView
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.stacks.lines import stack_lines
from dpwatch.tui.widgets.base import Scrolling, palette_of


@runtime_checkable
class AsksStacks(Protocol):
    """A source of snapshots whose ranks can be asked for stacks; a recording is not one."""

    def ask_stacks(self, run_id: str, ranks: tuple[int, ...] = ()) -> None:
        """Asks these ranks, or all; answers arrive with a snapshot. Any thread."""
        ...


class StackPanel(Scrolling):
    """The stacks of all ranks or one.

    Attributes:
        rank: The one, None for all.
        can: Whether ranks can be asked at all.
        asked: The run whose ranks were asked last.
    """

    rank: reactive[int | None] = reactive[int | None](None)
    can: reactive[bool] = reactive(True)
    asked: reactive[str] = reactive("")

    def watch_rank(self) -> None:
        """Another one: from the top."""
        self.scroll_to(y=0, animate=False)
        self.relayout()

    def watch_asked(self) -> None:
        """Say so."""
        self.relayout()

    def paint_key(self) -> object:
        """Whose stacks."""
        return self.rank, self.can, self.asked

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All of them; they scroll."""
        view, colors = _now(frame), palette_of(self)
        if view is None:
            return []
        return stack_lines(view, self.rank, width, colors, self._hint(view))

    def _hint(self, view: RunView) -> str:
        if not self.can:
            return "this is a recording: no rank can be asked"
        if self.asked != view.run.run_id:
            return "s asks the ranks for their stacks"
        return "asked; answers arrive within a second or two"

    def copied(self) -> str:
        """All stacks, as `dpwatch stacks` prints them."""
        view = _now(self.frame) if self.frame else None
        if view is None or not view.stacks:
            return ""
        return run_text(view, () if self.rank is None else (self.rank,))


def _now(frame: Frame) -> RunView | None:
    """The run on screen; requested stacks are shown even while paused."""
    return frame.newest or frame.view
