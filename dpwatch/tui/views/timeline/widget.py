"""The timeline as a widget: zoom, pan, and a cursor over lanes."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from dpwatch.run.derive.timeline import clock_shifts, extent
from dpwatch.run.model.snapshot import LANES, LaneSteps, Rank, Run, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line
from dpwatch.tui.views.communication.tables import last_to_arrive
from dpwatch.tui.views.timeline.lanes import (
    LABEL,
    Window,
    caption,
    lane_bar,
    lane_cells,
    lane_line,
    lane_name,
    legend,
    status_line,
    step_line,
    tick_line,
    within,
)
from dpwatch.tui.widgets.device_rows import state_sign
from dpwatch.tui.widgets.rank_list import Key, RankList

_STEPS_AT_FIRST = 3
_LEAST_NS = 100_000


class Timeline(RankList):
    """A lane per rank; follows the newest step until it is moved back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom(-1)", "Zoom", key_display="+ -"),
        Binding("minus", "zoom(1)", "Zoom out", show=False),
        Binding("left,h", "pan(-1)", "Pan", key_display="← →"),
        Binding("right,l", "pan(1)", "Later", show=False),
        Binding("comma", "hop(-1)", "Previous step", show=False),
        Binding("full_stop", "hop(1)", "Next step", show=False),
        Binding("f", "follow", "Follow", show=False),
    ]
    place: reactive[tuple[int | None, int | None]] = reactive((None, None))
    """Span and end of the window in ns; None: automatic, and the newest."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lanes: dict[Key, LaneSteps] = {}
        self._shifts: dict[str, int] = {}
        self._sharing: set[int] = set()
        self._extent: tuple[int, int] | None = None
        self._window: Window | None = None
        self._height = 1

    def watch_place(self) -> None:
        """Another window."""
        self.relayout()

    def choose(self, run: Run) -> list[Rank]:
        """The ranks whose steps are in the snapshot."""
        return list(run.ranks[:LANES])

    def lay_out(self, view: RunView) -> int:
        """The most lines per lane with which all lanes fit."""
        self._lanes = {(lane.rank, lane.device): lane for lane in view.lanes}
        lanes = Counter(lane.rank for lane in view.lanes)
        self._sharing = {rank for rank, number in lanes.items() if number > 1}
        self._shifts = clock_shifts(view.lanes, aligned=bool(view.run.other_hosts))
        self._extent = extent(view.lanes, self._shifts)
        self._window = self._on_screen()
        rows = len(self.rows)
        self._height = next((h for h in (3, 2) if rows * h <= self.body_height), 1)
        return rows * self._height

    def _on_screen(self) -> Window | None:
        if self._extent is None:
            return None
        first, last = self._extent
        span, end = self.place
        span = min(span or self._usual_ns(), max(last - first, 1))
        end = last if end is None else max(min(end, last), first + span)
        return Window(start_ns=end - span, end_ns=end)

    def _usual_ns(self) -> int:
        took = [s.end_ns - s.start_ns for lane in self._lanes.values() for s in lane.steps[-1:]]
        return max(max(took, default=0) * _STEPS_AT_FIRST, _LEAST_NS)

    def _lane(self, rank: Rank | None) -> LaneSteps | None:
        return self._lanes.get((rank.rank, rank.device)) if rank else None

    def _shift(self, lane: LaneSteps | None) -> int:
        return self._shifts.get(lane.host, 0) if lane else 0

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The window, the legend, and the step numbers."""
        notes = []
        if len(view.run.ranks) > LANES:
            notes.append(f"{LANES} of {len(view.run.ranks)} ranks")
        if len(self._shifts) > 1:
            notes.append(alignment(view.run))
        hung = view.run.state == "hung"  # then the earlier usual span does not matter
        if late := clean(view.run.reason, 80) if hung else last_to_arrive(view.run):
            notes.append(late)
        lines = [
            status_line(self._window, self.place[1] is None, notes, width, colors),
            legend(width, colors, shares=bool(self._sharing)),
        ]
        lane = self._lane(self.chosen)
        if lane is None or not lane.steps:
            lane = next((each for each in view.lanes if each.steps), None)
        if self._window is None:
            return [*lines, Text()]
        return [*lines, tick_line(lane, self._window, self._shift(lane), width, colors)]

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The last step on screen of the lane under the cursor, and what is not measured."""
        note = fitted(line((caption(width), colors.muted)), width)
        rank, lane = self.chosen, self._lane(self.chosen)
        if rank is None or lane is None or self._window is None:
            return [Text(), note]
        steps = within(lane, self._window, self._shift(lane))
        name = line(
            (f"▸ {lane_name(rank.rank, rank.device, self._several).strip()}  ", colors.strong)
        )
        shares = rank.rank in self._sharing
        room = width - name.cell_len
        told = step_line(steps[-1] if steps else None, room, colors, shares=shares)
        if not steps:
            told = line(("no step here" if lane.steps else "no step yet", colors.muted))
        return [fitted(line(name, told), width), note]

    @property
    def _several(self) -> bool:
        return len({rank.rank for rank in self.rows}) > 1

    def body_line(self, view: RunView, index: int, width: int, colors: Palette) -> Text:
        """A lane's bar and, if there is room, its last step's figures below it."""
        number, part = divmod(index, self._height)
        if number >= len(self.rows) or part == 2:
            return Text()
        rank = self.rows[number]
        lane, window = self._lane(rank), self._window
        shift = self._shift(lane)
        steps = within(lane, window, shift) if lane and window else []
        shares = rank.rank in self._sharing
        if part == 1:
            room = width - LABEL
            figures = step_line(steps[-1] if steps else None, room, colors, shares=shares)
            return line((" " * LABEL, colors.text), figures)
        cells = lane_cells(width)
        bar = Text(" " * cells)
        if lane is not None and window is not None:
            bar = lane_bar(lane, window, shift, cells, colors, shares=shares)
        mark = "▸" if number == self.cursor else " "
        name = left(lane_name(rank.rank, rank.device, self._several), LABEL - 2)
        head = line((mark, colors.accent), (name, colors.text), state_sign(rank, colors))
        return lane_line(head, lane, bar, steps, colors)

    def span(self, index: int) -> tuple[int, int]:
        """A lane's lines."""
        return index * self._height, (index + 1) * self._height

    def at(self, line: int, x: int) -> int | None:
        """The lane there."""
        number = line // self._height
        return number if 0 <= number < len(self.rows) else None

    def action_zoom(self, by: int) -> None:
        """Zoom by a factor of two, about the end of the window."""
        window, whole = self._window, self._extent
        if window is None or whole is None:
            return
        span = window.span_ns // 2 if by < 0 else window.span_ns * 2
        span = max(min(span, whole[1] - whole[0]), _LEAST_NS)
        self.place = (span, self.place[1])

    def action_pan(self, by: int) -> None:
        """Move a quarter of the screen; at the end it follows the newest again."""
        if self._window is not None:
            self._end_at(self._window.end_ns + by * self._window.span_ns // 4)

    def action_hop(self, by: int) -> None:
        """Start at the step before or after the first complete one on screen."""
        window, lane = self._window, self._lane(self.chosen)
        if window is None or lane is None:
            return
        starts = sorted(step.start_ns + self._shift(lane) for step in lane.steps)
        wanted = [s for s in starts if (s < window.start_ns if by < 0 else s > window.start_ns)]
        if wanted:
            self._end_at((wanted[-1] if by < 0 else wanted[0]) + window.span_ns)

    def _end_at(self, end_ns: int) -> None:
        window, whole = self._window, self._extent
        if window is None or whole is None:
            return
        end_ns = max(end_ns, whole[0] + window.span_ns)
        self.place = (window.span_ns, None if end_ns >= whole[1] else end_ns)

    def action_follow(self) -> None:
        """Back to the newest."""
        self.place = (self.place[0], None)

    def on_click(self, event: events.Click) -> None:
        """Choose a lane, or open the chosen one."""
        at = event.get_content_offset(self)
        if at is not None:
            self.pick(at.x, at.y)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom with ctrl and the wheel."""
        if event.ctrl:
            event.prevent_default().stop()
            self.action_zoom(-1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """With ctrl the wheel zooms."""
        if event.ctrl:
            event.prevent_default().stop()
            self.action_zoom(1)


def alignment(run: Run) -> str:
    """How hosts' clocks were aligned, and the error."""
    errors = [host.clock_error_ms for host in run.other_hosts]
    known = [error for error in errors if error is not None]
    if known and len(known) == len(errors):
        return f"hosts' clocks within {fmt.millis(max(known))}"
    return "hosts aligned at the end of a step"
