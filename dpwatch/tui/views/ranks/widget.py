"""All ranks on one screen, coloured by any figure."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from dpwatch.run.derive.distribution import Spread, spread
from dpwatch.run.model.snapshot import Rank, Run, RunView
from dpwatch.tui.draw.metrics import METRICS, Metric
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.snapshots.frame import named_rows
from dpwatch.tui.views.ranks.cells import (
    TITLE,
    HeatScale,
    heat_row,
    legend_line,
    metric_line,
    multiple_row,
    multiples_head,
    multiples_width,
    told_lines,
)
from dpwatch.tui.views.ranks.layout import FIGURE_CELL, Layout, by_host, layout
from dpwatch.tui.widgets.rank_list import RankList


class Heatmap(RankList):
    """A cell per rank; `m` draws another metric, `w` goes to the rank with the highest value.

    With few ranks, every known metric has a row.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Left", show=False),
        Binding("right,l", "step(1)", "Right", show=False),
        Binding("m", "metric(1)", "Metric"),
        Binding("M", "metric(-1)", "Previous metric", show=False),
        Binding("w", "worst", "Highest"),
    ]
    metric: reactive[int] = reactive(0)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._where = Layout(cell=1)
        self._spread: Spread | None = None
        self._scale: HeatScale | None = None
        self._multiples: list[tuple[Metric, HeatScale]] = []
        self._named: dict[tuple[int, str], str] = {}

    @property
    def drawn(self) -> Metric:
        """What the cells show."""
        return METRICS[self.metric]

    def watch_metric(self) -> None:
        """Other colours."""
        self.relayout()

    def choose(self, run: Run) -> list[Rank]:
        """All ranks, grouped by host."""
        self._spread = spread(run, self.drawn.value)
        self._scale = HeatScale.of(self._spread, self.drawn) if self._spread else None
        return by_host(run.ranks)

    def lay_out(self, view: RunView) -> int:
        """Cells as large as fit."""
        self._named = named_rows(view.run)
        self._multiples = self._all_metrics(view.run)
        if self._multiples:
            return 1 + len(self._multiples)
        self._where = layout(self.rows, self.body_width, self.body_height)
        return len(self._where.rows)

    def _all_metrics(self, run: Run) -> list[tuple[Metric, HeatScale]]:
        """The known metrics, with their scales; none if they don't fit."""
        if multiples_width(self.rows) > self.body_width:
            return []
        found = [(each, spread(run, each.value)) for each in METRICS]
        known = [(each, HeatScale.of(values, each)) for each, values in found if values]
        return known if len(known) < self.body_height else []

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """Metrics to choose from, and the scale."""
        number = len(view.run.ranks)
        legend = legend_line(self.drawn, self._scale, number, width, colors)
        return [metric_line(self.drawn, width, colors), legend]

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """The rank under the cursor."""
        if self.chosen is None:
            return [Text(), Text()]
        return told_lines(self.chosen, self.rows, self.drawn, self._spread, width, colors)

    def body_line(self, view: RunView, index: int, width: int, colors: Palette) -> Text:
        """One row of cells."""
        if self._multiples:
            return self._multiple(index, colors)
        if index >= len(self._where.rows):
            return Text()
        return heat_row(
            self.rows,
            self._where,
            index,
            self.drawn,
            self._scale,
            self.cursor,
            colors,
            self._named,
        )

    def _multiple(self, index: int, colors: Palette) -> Text:
        if index == 0:
            return multiples_head(self.rows, self.cursor, colors, self._named)
        if index > len(self._multiples):
            return Text()
        metric, scale = self._multiples[index - 1]
        chosen = metric is self.drawn
        return multiple_row(self.rows, metric, scale, colors, self._named, chosen=chosen)

    def span(self, index: int) -> tuple[int, int]:
        """The row its cell is in."""
        if self._multiples:
            return 0, 1 + len(self._multiples)
        row = self._where.places[index][0] if index < len(self._where.places) else 0
        return row, row + 1

    def at(self, line: int, x: int) -> int | None:
        """The rank whose cell it is."""
        if self._multiples:
            column = (x - TITLE) // FIGURE_CELL
            return column if 0 <= column < len(self.rows) else None
        return self._where.at(line, x)

    def action_move(self, by: int) -> None:
        """Move up or down, to the nearest cell there or to another metric."""
        if self._multiples:
            shown = [metric for metric, _ in self._multiples]
            at = shown.index(self.drawn) if self.drawn in shown else 0
            self.metric = METRICS.index(shown[max(min(at + by, len(shown) - 1), 0)])
        elif self.rows:
            self.go(self._where.beyond(self.cursor, by))

    def action_step(self, by: int) -> None:
        """Move to the previous or next cell."""
        self.go(self.cursor + by)

    def action_metric(self, by: int) -> None:
        """Draw another metric."""
        self.metric = (self.metric + by) % len(METRICS)

    def action_worst(self) -> None:
        """Move to the rank with the highest value."""
        if self._spread is not None:
            self.go(self.rows.index(self._spread.highest))

    def on_click(self, event: events.Click) -> None:
        """Draw the clicked metric; choose a cell, or open the chosen one."""
        metric = event.style.meta.get("metric")
        if metric is not None:
            self.metric = metric
        else:
            at = event.get_content_offset(self)
            if at is not None:
                self.pick(at.x, at.y)
