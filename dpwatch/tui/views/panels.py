"""The panels: widgets that bind a frame to the functions that draw it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.reactive import reactive, var

from dpwatch.tui.draw.bar_segments import legend_lines
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.render.line_widget import Ground
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.communication.tables import LOWER_MIN, communication_lines, lower_lines
from dpwatch.tui.views.overview import summary_lines
from dpwatch.tui.views.rank_detail import rank_lines
from dpwatch.tui.views.waiting_and_help import help_lines, waiting_lines
from dpwatch.tui.widgets.base import Painted, Scrolling, palette_of
from dpwatch.tui.widgets.header import header_line, nav_line, session_line
from dpwatch.tui.widgets.rank_list import Key
from dpwatch.tui.widgets.rank_table import ROOMY, RankTable
from dpwatch.tui.widgets.view import View


class Header(Painted):
    """Program, run, state, pause."""

    def __init__(self, title: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = title

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """One line."""
        return [header_line(frame, self._title, width, palette_of(self))]


class Nav(Painted):
    """The views' names and the runs, to click on."""

    active: reactive[str] = reactive("overview")

    class Picked(Message):
        """A name was clicked: one of `panel` and `run_id` is set."""

        def __init__(self, panel: str | None, run_id: str | None) -> None:
            self.panel = panel
            self.run_id = run_id
            super().__init__()

    def __init__(self, views: Sequence[View], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._views = views

    def watch_active(self) -> None:
        """Another name is marked."""
        self._key = None
        self.refresh()

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """One line."""
        return [nav_line(frame, self._views, self.active, width, palette_of(self))]

    def on_click(self, event: events.Click) -> None:
        """The name under the pointer is in the style's meta."""
        meta = event.style.meta
        if "panel" in meta or "run" in meta:
            self.post_message(self.Picked(meta.get("panel"), meta.get("run")))


class SessionLine(Painted):
    """The demo's progress, or its source's notice; hidden if there is neither."""

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """One line."""
        found = session_line(frame, width, palette_of(self))
        return [] if found is None else [found]

    def watch_frame(self) -> None:
        """Show or hide."""
        frame = self.frame
        self.display = frame is not None and session_line(frame, 80, palette_of(self)) is not None
        self.redraw()


class Summary(Painted):
    """The upper part of the overview, as high as its content."""

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """Cards on a large screen, dense lines on a small one."""
        return summary_lines(frame, width, self.app.size.height, palette_of(self))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """Lines the summary has at this width."""
        if self.frame is None:
            return 0
        return len(summary_lines(self.frame, width, self.app.size.height, palette_of(self)))

    def watch_frame(self) -> None:
        """Diagnoses change the height; laying out every time would be expensive."""
        if self.get_content_height(None, None, self.size.width) != self.size.height:
            self.refresh(layout=True)
        else:
            self.redraw()


class Legend(Painted):
    """The legend of the bars."""

    def lines(self) -> list[Text]:
        """One line or two, whatever is shown."""
        return legend_lines(self.size.width, palette_of(self))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """One line or two."""
        return len(legend_lines(width, palette_of(self)))


class Lower(Painted):
    """Collectives, copies and step time, if the rows leave room."""

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """The tables and the curve of the run on screen."""
        view = frame.view
        return lower_lines(view, width, height, palette_of(self)) if view else []


class Overview(Vertical, Ground):
    """Summary, legend, a row per rank, and communication if there is room."""

    frame: var[Frame | None] = var[Frame | None](None)
    _room: int | None = None
    """Lines of the table, 0 for all there are, None while unknown."""

    def compose(self) -> ComposeResult:
        """Lay out from top to bottom."""
        yield Summary(id="summary").data_bind(Overview.frame)
        yield RankTable(id="ranks").data_bind(Overview.frame)
        yield Legend(id="legend")
        yield Lower(id="lower").data_bind(Overview.frame)

    def watch_frame(self) -> None:
        """The number of rows or tables may have changed."""
        self._make_room()

    def on_resize(self) -> None:
        """So may the room there is."""
        self._make_room()

    def _make_room(self) -> None:
        """Show the lower part if every row keeps its details and a blank line above it."""
        frame = self.frame
        view = frame.view if frame else None
        if frame is None or view is None or not self.is_mounted or not self.size.height:
            return
        colors = palette_of(self)
        above = len(summary_lines(frame, self.size.width, self.app.size.height, colors))
        above += len(legend_lines(self.size.width, colors)) + 2  # the blank lines between the parts
        rows = 1 + len(view.run.ranks) * ROOMY
        left = self.size.height - above - rows
        fits = left >= LOWER_MIN and left >= len(
            communication_lines(view.run, self.size.width, colors)
        )
        room = rows if fits else 0
        if room != self._room:  # setting a style searches for what it changes
            self._room = room
            self.query_one(Lower).display = fits
            self.query_one(RankTable).styles.height = rows if fits else "1fr"


class Waiting(Painted):
    """What to start, while there is no run."""

    def __init__(self, waiting_text: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._waiting_text = waiting_text
        self._trains = find_spec("torch") is not None

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """Centred on the screen."""
        notice = frame.trouble or frame.snapshot.notice
        seen = frame.snapshot
        return waiting_lines(
            notice,
            self._waiting_text,
            seen.gpus,
            width,
            height,
            palette_of(self),
            seen.places,
            trains=self._trains,
        )


class Help(Scrolling):
    """Keys, colours, numbers; first the keys of the view it was opened from.

    Attributes:
        about: That view's or page's name.
        views: All views.
        pages: What is opened from them.
    """

    about: reactive[str] = reactive("")
    views: reactive[tuple[View, ...]] = reactive(())
    pages: reactive[tuple[View, ...]] = reactive(())

    def watch_about(self) -> None:
        """Another view: from the top."""
        self.scroll_to(y=0, animate=False)
        self.relayout()

    def watch_views(self) -> None:
        """Set what it covers."""
        self.relayout()

    def paint_key(self) -> object:
        """What it is about."""
        return self.about, self.views, self.pages

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All of it; it scrolls."""
        return help_lines(self.views, self.about, width, palette_of(self), self.pages)


class RankDetail(Scrolling):
    """One rank of the run on screen."""

    key: reactive[Key | None] = reactive[Key | None](None)

    def watch_key(self) -> None:
        """Another rank: from the top."""
        self.scroll_to(y=0, animate=False)
        self.relayout()

    def paint_key(self) -> object:
        """The rank shown."""
        return self.key

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """Its numbers and curves, or a note that it isn't in this run."""
        view, colors = frame.view, palette_of(self)
        for index, rank in enumerate(view.run.ranks if view else ()):
            if view is not None and (rank.rank, rank.device) == self.key:
                return rank_lines(view, index, width, colors)
        return [Text("this rank is not in the run on screen: esc goes back", style=colors.muted)]
