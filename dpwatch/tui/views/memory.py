"""Each device's memory at its peak: by category against its capacity, and over the run.

Also, marked as predicted, what the same model's state would take under other strategies.
"""

from __future__ import annotations

from typing import ClassVar

from dpwatch.run.derive.comparison import others_median, peak_bytes, peaks_of_processes
from dpwatch.run.derive.predicted_memory import elsewhere
from dpwatch.run.model.snapshot import Curve, MemoryUse, Rank, Run, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bar_segments import figures, memory_parts
from dpwatch.tui.draw.bars import segment_style, stacked
from dpwatch.tui.draw.layout import heading
from dpwatch.tui.draw.metrics import Metric
from dpwatch.tui.draw.palette import MEMORY_KINDS, Palette
from dpwatch.tui.draw.plot import Series, plot
from dpwatch.tui.draw.sentences import processes_of
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line, right
from dpwatch.tui.widgets.device_rows import DeviceRows
from dpwatch.tui.widgets.rank_columns import Scale
from dpwatch.tui.widgets.rank_list import Key
from dpwatch.wire.messages import CATEGORIES

_LABEL = 15
_FIGURE = 10
_HEAD = 3
_CURVE_MIN, _CURVE_MAX = 6, 14
_CURVES = 6
_WIDE = 100
_INDENT = "  "


def _category(name: str) -> Metric:
    return Metric(
        title=name, told=name, value=lambda rank: getattr(rank.memory, name), show=fmt.size
    )


class Memory(DeviceRows):
    """A bar per device on one scale, and below them their peaks over the run."""

    SORTS: ClassVar[tuple[Metric, ...]] = (
        Metric(title="peak", told="peak", value=peak_bytes, show=fmt.size),
        *(_category(name) for name in CATEGORIES),
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scale = Scale(step_ms=None, peak_bytes=None, capacity=False)
        self._curves: dict[Key, Curve] = {}

    def lay_out(self, view: RunView) -> int:
        """One scale for all rows."""
        self._scale = Scale.of(view.run)
        curves = zip(view.run.ranks, view.history.rank_peak_bytes, strict=False)
        self._curves = {(rank.rank, rank.device): curve for rank, curve in curves}
        return super().lay_out(view)

    def head(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """Device 0 against the others, the legend, and the figures' names."""
        full = "capacity" if Scale.of(view.run).capacity else "the largest peak"
        title = f"  a full bar is {full} · {self.sort_note()}"
        names = (
            left(title, width - 2 * _FIGURE - 1)
            + right("peak", _FIGURE)
            + right("capacity", _FIGURE + 1)
        )
        first = balance_line(view.run, width, colors)
        return [first, legend(width, colors), line((names, colors.muted))]

    def foot(self, view: RunView, width: int, colors: Palette) -> list[Text]:
        """Predictions for other strategies, and the peaks over the run, if there is room."""
        rows = min(len(self.rows) * 2, self.size.height // 2)
        room = self.size.height - _HEAD - rows
        told = predicted(view.run, width, colors)
        told = told if room >= len(told) else []
        height = min(room - len(told), _CURVE_MAX)
        if height < _CURVE_MIN or not self.rows:
            return told
        series = self._series(view.run, colors)
        names = ", ".join(each.name for each in series)
        title = heading("Peak over the run", width, colors, names)
        return [
            *told,
            title,
            *plot(series, width, height - 1, colors, label=fmt.size, from_zero=True),
        ]

    def _series(self, run: Run, colors: Palette) -> list[Series]:
        """All devices' curves if they are few; else device 0's and the chosen one's."""
        wanted = list(run.ranks)
        if len(wanted) > _CURVES:
            wanted = [run.ranks[0]]
            if self.chosen is not None and self.chosen not in wanted:
                wanted.append(self.chosen)
        several = processes_of(run) > 1
        return [
            Series(
                name=f"rank {rank.rank}" if several else clean(rank.device, 12),
                curve=self._curves.get((rank.rank, rank.device), Curve()),
                style=colors.series[index % len(colors.series)],
            )
            for index, rank in enumerate(wanted)
        ]

    def row_line(self, view: RunView, rank: Rank, part: int, width: int, colors: Palette) -> Text:
        """Name, bar and peak; then the categories' figures; then a blank."""
        if part == 0:
            return memory_line(rank, self._scale, processes_of(view.run) > 1, width, colors)
        if part == 2:
            return Text()
        room = width - _LABEL
        guess = estimated_activations(rank.memory)
        room -= len(guess)
        told = figures(memory_parts(rank.memory), MEMORY_KINDS, fmt.size, room, colors)
        return line((" " * _LABEL, colors.text), told, (guess, colors.muted))


def memory_line(rank: Rank, scale: Scale, several: bool, width: int, palette: Palette) -> Text:
    """One device's bar, its peak, and its capacity."""
    memory = rank.memory
    name = clean(rank.device, 12)
    label = f"{rank.rank:>4} {name}" if several else name
    full = memory.capacity_bytes if scale.capacity else scale.peak_bytes
    room = width - _LABEL - 2 * _FIGURE - 1
    peak = memory.peak_bytes
    return line(
        (left(label, _LABEL), palette.text),
        stacked(memory_parts(memory), MEMORY_KINDS, room, palette, total=full),
        (right(fmt.size(peak), _FIGURE), palette.muted if peak is None else palette.strong),
        (right(fmt.size(memory.capacity_bytes), _FIGURE + 1), palette.muted),
    )


def predicted(run: Run, width: int, palette: Palette) -> list[Text]:
    """What this model's state would take per device under other strategies, if known."""
    rows = elsewhere(run)
    if not rows:
        return []
    note = "params, grads, optimizer; no activations" if width >= _WIDE else "no activations"
    title = heading("Predicted: model state a device", width, palette, note)
    lines = [Text(_INDENT)]
    for row in rows:
        held = fmt.size(row.first)
        if row.others != row.first:
            held += f" (others {fmt.size(row.others)})"
        name = f"▸{row.strategy} " if row.here else f"{row.strategy} "
        told = line((name, palette.strong if row.here else palette.accent), (held, palette.text))
        if lines[-1].cell_len + told.cell_len > width:
            lines.append(Text(_INDENT))
        lines[-1].append_text(told).append("   ")
    return [title, *(fitted(each, width) for each in lines)]


def balance_line(run: Run, width: int, palette: Palette) -> Text:
    """Device 0 against the others, in figures."""
    if not run.ranks or peak_bytes(run.ranks[0]) is None:
        return fitted(line(("device 0's memory is not known yet", palette.muted)), width)
    first = run.ranks[0]
    if peaks_of_processes(run):
        return _process_line(run, width, palette)
    told = line(
        (f"device 0 peaks at {fmt.size(peak_bytes(first))}", palette.strong),
        (f", the others' median {fmt.size(others_median(run, peak_bytes))}", palette.text),
    )
    ratio = run.balance.peak_device0_over_median
    if ratio is not None:
        told.append(f" ({fmt.ratio(ratio)})", palette.text)
    if first.memory.source:
        told.append(f" · by {clean(first.memory.source, 12)}", palette.muted)
    return fitted(told, width)


def _process_line(run: Run, width: int, palette: Palette) -> Text:
    """The same for resident sizes, which say little about device 0's tensors."""
    peak, others = fmt.size(peak_bytes(run.ranks[0])), fmt.size(others_median(run, peak_bytes))
    return fitted(
        line(
            (f"the first process has peaked at {peak}", palette.strong),
            (f", the others' median {others}", palette.text),
            (" · by rss: whole processes, since they began", palette.muted),
        ),
        width,
    )


def estimated_activations(memory: MemoryUse) -> str:
    """Estimates, marked as such; "" if there are none."""
    guess = memory.activations_estimate
    return "" if guess is None else f"  ~{MEMORY_KINDS['activations'].letter} {fmt.size(guess)}"


def legend(width: int, palette: Palette) -> Text:
    """The legend."""
    names = [name for name in MEMORY_KINDS if name != "untold"]
    for gap in ("  ", " "):
        result = Text()
        for name in names:
            kind = MEMORY_KINDS[name]
            result.append(kind.letter, palette.strong if palette.mono else segment_style(kind))
            result.append(f" {kind.name}{gap}", palette.muted)
        if result.cell_len <= width:
            break
    return fitted(result, width)
