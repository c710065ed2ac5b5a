"""The dashboard: panels, and what is opened from them. It computes no metric.

`snapshots.playback` decides which moment of which run they draw.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from textual import events, on
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.filter import LineFilter
from textual.geometry import Size
from textual.reactive import var
from textual.screen import Screen
from textual.scroll_view import ScrollView
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Input, Static

from dpwatch.text_safety import clean
from dpwatch.tui.commands import COMMANDS
from dpwatch.tui.draw.palette import THEMES
from dpwatch.tui.render.ascii import PlainFilter, PlainScrollBar
from dpwatch.tui.render.driver import lasting, terminal_size
from dpwatch.tui.render.line_widget import Ground
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.snapshots.playback import Moments
from dpwatch.tui.snapshots.refresh_rate import USUAL_S
from dpwatch.tui.snapshots.source import SnapshotSource
from dpwatch.tui.views.panels import Header, Help, Nav, RankDetail, SessionLine, Waiting
from dpwatch.tui.views.registry import BY_NAME, PAGES, VIEWS
from dpwatch.tui.views.stacks.widget import AsksStacks, StackPanel
from dpwatch.tui.views.waiting_and_help import MIN_HEIGHT, MIN_WIDTH, too_small_line
from dpwatch.tui.widgets.base import Chosen
from dpwatch.tui.widgets.footer import KeysLine
from dpwatch.tui.widgets.rank_list import Key, RankList
from dpwatch.tui.widgets.rank_table import RankTable
from dpwatch.tui.widgets.view import digit

if TYPE_CHECKING:
    from dpwatch.tui.views.alerts.widget import Alerts
    from dpwatch.tui.views.compare.widget import Compare

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that close the dashboard and restore the terminal, like `q`, but with their exit code."""
OPENED = ("rank", "stacks", "help")
"""Panels that are opened from others and closed by going back."""
SIZE_S = 1.0
"""How often the terminal's size is checked."""
SHORT_BELOW = 30
"""Terminals lower than this get no blank lines between parts."""


class Base(Screen[None], Ground):
    """The screen that the dashboard lies on."""


class Panels(ContentSwitcher, Ground):
    """One panel of several."""


class Framed(Protocol):
    """What draws a frame."""

    frame: Frame | None


class Filtered(Protocol):
    """What a filter can narrow."""

    terms: str


class DashboardApp(Moments):
    """The terminal dashboard over a stream of snapshots.

    Args:
        source: Read by a worker thread until the app ends, then closed.
        title: Shown at the top left.
        waiting_text: Shown instead of the usual advice while there is no run.
        on_quit: Called once when the app is about to end.
        ascii_only: Draw with ASCII characters only.
        interval_s: The refresh interval, if the source supports it.
        theme: Name of one of `palette.THEMES`.
        view: Name of the view to start with.
        sort: Title of the overview's column to sort by at first, "" for none.
    """

    CSS_PATH = Path(__file__).with_name("dashboard.tcss")
    AUTO_FOCUS = None  # otherwise the hidden filter line would get the first keys
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Back"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("space", "pause", "Pause"),
        Binding("s", "stacks", "Stacks"),
        Binding("left_square_bracket", "rewind(-1)", "Back in time", show=False),
        Binding("right_square_bracket", "rewind(1)", "Forward in time", show=False),
        Binding("left_curly_bracket", "rewind(-10)", "Far back in time", show=False),
        Binding("right_curly_bracket", "rewind(10)", "Far forward in time", show=False),
        Binding("plus,equals_sign", "pace(1)", "Refresh less often", show=False),
        Binding("minus", "pace(-1)", "Refresh more often", show=False),
        Binding("n", "run(1)", "Next run"),
        Binding("y", "copy", "Copy", show=False),
        Binding("e", "save", "Save a picture", show=False),
        Binding("p", "run(-1)", "Previous run", show=False),
        # Textual binds the first by itself, but not together with another.
        Binding(App.COMMAND_PALETTE_BINDING, "command_palette", "palette", False, priority=True),
        Binding("colon", "command_palette", "Every command", show=False),
        # The screen's own tab moves the focus, which here follows the panel.
        Binding("tab", "run(1)", "Next run", show=False, priority=True),
        Binding("shift+tab", "run(-1)", "Previous run", show=False, priority=True),
        *(
            Binding(digit(index), f"panel('{view.name}')", view.title, show=False)
            for index, view in enumerate(VIEWS)
            if view.name != "help"
        ),
    ]

    panel: var[str] = var("overview", init=False)
    active: var[str] = var("overview")

    def __init__(
        self,
        source: SnapshotSource,
        *,
        title: str = "dpwatch",
        waiting_text: str = "",
        on_quit: Callable[[], None] | None = None,
        ascii_only: bool = False,
        interval_s: float = USUAL_S,
        theme: str = THEMES[0].name,
        view: str = "overview",
        sort: str = "",
    ) -> None:
        super().__init__(source, interval_s)
        self.set_class(ascii_only, "ascii")
        self._plain = [PlainFilter()] if ascii_only else []
        self.title = clean(title, 40)
        self._waiting_text = waiting_text
        self._panels = Panels(initial="waiting", id="panels")
        self._box = Input(id="filter", compact=True)
        self._on_quit = on_quit
        self._opened_from: list[str] = []
        self._chosen: Key | None = None
        self._drilled: tuple[str | None] | None = None
        self._closable = False
        self._offered: tuple[bool, str, int] | None = None
        self._session_over = False
        for each in THEMES:
            self.register_theme(each)
        self.theme = theme
        self._first = (view, sort)

    def get_default_screen(self) -> Screen[None]:
        """See Textual."""
        return Base(id="_default")

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's, and the one that writes ASCII only."""
        return [*super().get_line_filters(), *self._plain]

    def get_driver_class(self) -> type[Driver]:
        """The platform's driver, made to survive a lost terminal."""
        return lasting(super().get_driver_class())

    def compose(self) -> ComposeResult:
        """Header, panels, filter, footer."""
        yield Header(self.title, id="header").data_bind(DashboardApp.frame)
        yield Nav(VIEWS, id="nav").data_bind(DashboardApp.frame, DashboardApp.active)
        yield SessionLine(id="session").data_bind(DashboardApp.frame)
        with self._panels:
            yield Waiting(self._waiting_text, id="waiting")
            yield BY_NAME["overview"].make()
            yield RankDetail(id="rank")
            yield StackPanel(id="stacks")
        yield Static("", id="too-small", markup=False)
        yield self._box
        yield KeysLine(id="keys")

    def on_mount(self) -> None:
        """Start reading once the first screen is drawn."""
        for scrolled in self.query(ScrollView):
            self._make_plain(scrolled)
        self.panel, sort = self._first
        if sort:
            self.query_one(RankTable).order = (sort, False)
        self._fit(self.size.width, self.size.height)
        self.call_after_refresh(self._read)
        if not self.is_headless:
            gc.freeze()  # what exists by now stays; scanning it now and then would delay keys
        if not self.is_headless and not self.is_web:
            self.set_interval(SIZE_S, self.see_size)
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for signum in ENDING:
                loop.add_signal_handler(signum, self.exit, None, 128 + signum)

    def on_unmount(self) -> None:
        """Calls `on_quit`, however the app ends."""
        if threading.current_thread() is threading.main_thread():
            for signum in ENDING:
                asyncio.get_running_loop().remove_signal_handler(signum)
        on_quit, self._on_quit = self._on_quit, None
        if on_quit is not None:
            on_quit()

    def watch_snapshot(self) -> None:
        """New data. When a session of several runs is over, their comparison comes up."""
        progress = self.snapshot.progress if self.snapshot else None
        if progress and progress.done == len(progress.names) > 1 and not self._session_over:
            self._session_over = True
            looks_on = self.panel == "overview" and self._picked_run is None
            if looks_on and not self._box.has_class("open"):
                self.panel = "compare"
            cast("Compare", self._panel("compare")).compare_by(progress.metric)
        self.make_frame()

    def watch_panel(self, before: str, panel: str) -> None:
        """Remember where such a panel was opened from; going back visits each only once."""
        came_from = self._opened_from
        if panel in came_from:
            del came_from[came_from.index(panel) :]
        elif panel in OPENED:
            came_from.append(before)
        else:
            came_from.clear()
        self.active = came_from[0] if panel in ("rank", "stacks") and came_from else panel
        if panel == "help":
            shown = cast("Help", self._panel(panel))
            shown.views, shown.pages, shown.about = VIEWS, PAGES, before
        self.show()
        self._show_filter()

    @property
    def stays(self) -> bool:
        """The run of an open rank stays on the screen when a newer one appears."""
        return self.panel in ("rank", "stacks")

    def show(self) -> None:
        """Show the panel; advice replaces the overview while there is no run."""
        if not self.screen_stack:
            return
        none_yet = not self.frame.snapshot.runs
        waits = self.panel not in BY_NAME or BY_NAME[self.panel].waits
        wanted = "waiting" if none_yet and waits else self.panel
        panel = self._panel(wanted)
        if self._panels.current != wanted:
            self._panels.current = wanted
            self._focus_panel(wanted)
        # The others get theirs when they are shown.
        cast("Framed", panel).frame = self.frame
        self._offer_back()

    def _panel(self, name: str) -> Widget:
        """A panel's widget, created when it is first shown."""
        for known in self._panels.children:
            if known.id == name:
                return known
        made = BY_NAME[name].make()
        made.display = False  # the switcher hides what it started with, not what is mounted later
        self._panels.mount(made)
        if isinstance(made, RankList) and self._chosen is not None:
            made.select(self._chosen)
        if isinstance(made, ScrollView):
            self._make_plain(made)
        return made

    def _make_plain(self, scrolled: ScrollView) -> None:
        if self.has_class("ascii"):
            bar = scrolled.vertical_scrollbar
            bar.renderer = PlainScrollBar  # type: ignore[misc]  # of this one alone

    def _focus_panel(self, name: str) -> None:
        target = BY_NAME[name].target if name in BY_NAME else f"#{name}"
        widget = self.screen_stack[0].query_one(target)
        if widget.can_focus:
            # At once: `widget.focus()` waits, and a key typed right after would be lost.
            self.screen_stack[0].set_focus(widget)

    def _focus_shown(self) -> None:
        shown = self._panels.current
        if shown is not None:
            self._focus_panel(shown)

    def action_panel(self, name: str) -> None:
        """Show a panel."""
        if name == "compare":
            self._drilled = None
        self.panel = name
        self._offer_back()

    def action_help(self) -> None:
        """Show the help, or close it."""
        if self.panel == "help":
            self.action_close()
        else:
            self.panel = "help"

    def action_stacks(self) -> None:
        """Ask ranks for their stacks and show them: on a rank's page its own, else all."""
        if self.panel == "alerts":
            run_id = cast("Alerts", self._panel("alerts")).chosen_run
            if run_id is not None:
                self.pick(run_id)
        view = self.frame.view
        if view is None:
            return
        panel = self.query_one(StackPanel)
        if self.panel != "stacks":
            key = self.query_one(RankDetail).key if self.panel == "rank" else None
            panel.rank = key[0] if key is not None else None
            self.panel = "stacks"
        panel.can = isinstance(self._source, AsksStacks)
        if isinstance(self._source, AsksStacks):
            whose = () if panel.rank is None else (panel.rank,)
            self._source.ask_stacks(view.run.run_id, whose)
            panel.asked = view.run.run_id

    def _filtered(self) -> Filtered | None:
        """What the filter narrows on the panel shown."""
        view = BY_NAME.get(self.panel)
        if view is None or not view.filters or not self.frame.snapshot.runs:
            return None
        return cast("Filtered", self.screen_stack[0].query_one(view.target))

    def _show_filter(self, *, opening: bool = False) -> None:
        """Show the panel's own filter in the line, if it has one."""
        if not self.screen_stack:
            return
        filtered, box = self._filtered(), self._box
        terms = filtered.terms if filtered else ""
        box.placeholder = BY_NAME[self.panel].filters if self.panel in BY_NAME else ""
        with box.prevent(Input.Changed):
            box.value = terms
        box.set_class(opening or bool(terms), "open")
        self._offer_back()

    def action_filter(self) -> None:
        """Open the line to type a filter into."""
        if self._filtered() is not None:
            self._show_filter(opening=True)
            self.screen_stack[0].set_focus(self._box)

    @on(Input.Changed, "#filter")
    def _narrow(self, event: Input.Changed) -> None:
        filtered = self._filtered()
        if filtered is not None:
            filtered.terms = event.value

    @on(Input.Submitted, "#filter")
    def _keep_filter(self) -> None:
        """Enter keeps the filter and goes back to the rows."""
        self._show_filter()
        self._focus_panel(self.panel)

    def action_close(self) -> None:
        """Close what is open: the filter, a rank, a run opened from the comparison, help."""
        filtered = self._filtered()
        if filtered is not None and self._box.has_class("open"):
            filtered.terms = ""
            self._show_filter()
            self._focus_panel(self.panel)
        elif self.panel in OPENED:
            self.panel = self._opened_from[-1] if self._opened_from else "overview"
        elif self._drilled is not None:
            (self._picked_run,), self._drilled = self._drilled, None
            self.panel = "compare"
            self.make_frame()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only keys that do something, such as going back or filtering."""
        if action == "close":
            return self._closable
        if action in ("stacks", "run"):
            return len(self.frame.snapshot.runs) > (action == "run")
        return action != "filter" or self._filtered() is not None

    def _offer_back(self) -> None:
        opened = self.panel in OPENED or self._drilled is not None
        self._closable = opened or self._box.has_class("open")
        offered = (self._closable, self.panel, len(self.frame.snapshot.runs))
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    @on(Chosen)
    def _open(self, message: Chosen) -> None:
        """Open a rank; from the comparison or a diagnosis of a whole run, that run."""
        if message.key is None and self.panel == "compare":
            self._drilled = (self._picked_run,)
            self._picked_run = message.run_id
            self.make_frame()
        else:
            self.pick(message.run_id)
        if message.key is None:
            self.panel = "overview"
            return
        self._chosen = message.key
        for ranks in self.query(RankList):
            ranks.select(message.key)
        self.query_one(RankDetail).key = message.key
        self.panel = "rank"

    @on(Nav.Picked)
    def _follow_click(self, message: Nav.Picked) -> None:
        if message.panel is not None:
            self.panel = message.panel
        if message.run_id is not None:
            self.pick(message.run_id)

    def on_resize(self, event: events.Resize) -> None:
        """Say so if the terminal is too small; drop blank lines if it is low."""
        self.screen_buffer.forget()  # terminals move their content arbitrarily
        self._fit(event.size.width, event.size.height)

    def see_size(self) -> None:
        """Checks the terminal's size, in case its signal was lost."""
        found = Size(*terminal_size())
        if found != self.size:
            self.post_message(events.Resize(found, found))

    def _fit(self, width: int, height: int) -> None:
        screen = self.screen_stack[0]
        was_small, small = screen.has_class("small"), width < MIN_WIDTH or height < MIN_HEIGHT
        screen.set_class(small, "small")
        if was_small and not small:  # what was hidden has lost the focus
            self.call_after_refresh(self._focus_shown)
        screen.set_class(height < SHORT_BELOW, "short")
        screen.query_one("#too-small", Static).update(too_small_line(width, height))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """What the command palette offers."""
        for title, text, action in COMMANDS:
            yield SystemCommand(title, text, partial(self.call_later, self.run_action, action))
