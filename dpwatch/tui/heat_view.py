"""All ranks on one screen, coloured by any figure."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from dpwatch.hub.snapshot import Rank, Run, RunView
from dpwatch.hub.spread import Spread, spread
from dpwatch.tui.heat import HeatScale, heat_row, legend_line, metric_line, told_lines
from dpwatch.tui.heat_layout import Layout, by_host, layout
from dpwatch.tui.metrics import METRICS, Metric
from dpwatch.tui.palette import Palette
from dpwatch.tui.pinned import Pinned


class Heatmap(Pinned):
    """A cell a rank; `m` draws another metric, `w` goes to the rank where it is highest."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Left", show=False),
        Binding("right,l", "step(1)", "Right", show=False),
        Binding("m", "metric(1)", "Metric"),
        Binding("M", "metric(-1)", "Metric before", show=False),
        Binding("w", "worst", "Highest"),
    ]
    metric: reactive[int] = reactive(0)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._where = Layout(cell=1)
        self._spread: Spread | None = None
        self._scale: HeatScale | None = None

    @property
    def drawn(self) -> Metric:
        """What the cells show."""
        return METRICS[self.metric]

    def watch_metric(self) -> None:
        """Other colours."""
        self.relayout()

    def choose(self, run: Run) -> list[Rank]:
        """Every rank, hosts together."""
        self._spread = spread(run, self.drawn.value)
        self._scale = HeatScale.of(self._spread) if self._spread else None
        return by_host(run.ranks)

    def lay_out(self, view: RunView) -> int:
        """Cells as large as they fit."""
        self._where = layout(self.rows, self.body_width, self.body_height)
        return len(self._where.rows)

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """Metrics to choose from, and the scale."""
        number = len(view.run.ranks)
        legend = legend_line(self.drawn, self._scale, number, width, colors)
        return [metric_line(self.drawn, width, colors), legend]

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The rank under the cursor."""
        if self.chosen is None:
            return [Text(end=""), Text(end="")]
        return told_lines(self.chosen, self.rows, self.drawn, self._spread, width, colors)

    def body_line(self, view: RunView, index: int, width: int, colors: Palette) -> Text:
        """One row of cells."""
        if index >= len(self._where.rows):
            return Text(end="")
        return heat_row(self.rows, self._where, index, self.drawn, self._scale, self.cursor, colors)

    def span(self, index: int) -> tuple[int, int]:
        """The row its cell is in."""
        row = self._where.places[index][0] if index < len(self._where.places) else 0
        return row, row + 1

    def at(self, line: int, x: int) -> int | None:
        """The rank whose cell it is."""
        return self._where.at(line, x)

    def action_move(self, by: int) -> None:
        """Up or down, to the nearest cell there."""
        if self.rows:
            self.go(self._where.beyond(self.cursor, by))

    def action_step(self, by: int) -> None:
        """To the cell before or after."""
        self.go(self.cursor + by)

    def action_metric(self, by: int) -> None:
        """Draw another metric."""
        self.metric = (self.metric + by) % len(METRICS)

    def action_worst(self) -> None:
        """To the rank where the figure is highest."""
        if self._spread is not None:
            self.go(self.rows.index(self._spread.highest))

    def on_click(self, event: events.Click) -> None:
        """A metric's name draws it; a cell is chosen, and opened by a second click."""
        metric = event.style.meta.get("metric")
        if metric is not None:
            self.metric = metric
        else:
            at = event.get_content_offset(self)
            if at is not None:
                self.pick(at.x, at.y)
