"""The table of ranks: which columns fit, and one row drawn from one `Rank`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from rich.cells import cell_len
from rich.style import Style

from dpwatch.run.derive.comparison import devices, largest, peak_bytes, traffic_bytes
from dpwatch.run.model.snapshot import MemoryUse, Rank, Run
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bar_segments import figures_line, largest_figures, memory_parts, phase_parts
from dpwatch.tui.draw.bars import stacked
from dpwatch.tui.draw.metrics import BY_TITLE
from dpwatch.tui.draw.palette import (
    MEMORY_KINDS,
    PHASE_KINDS,
    SEVERITY_GLYPHS,
    STATE_GLYPHS,
    Palette,
)
from dpwatch.tui.draw.sentences import processes_of
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, fitted, left, line, right

_BLANK = Style.null()
BAR_MIN, BAR_MAX = 9, 48
BAR_ROOM = 28
"""Cells that the two bars together get beyond their least before extra columns appear."""
_EXTRA = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The amount of a full bar, the same for all rows of a run."""

    step_ms: float | None
    peak_bytes: float | None
    capacity: bool

    @classmethod
    def of(cls, run: Run) -> Scale:
        """The slowest rank's step; the devices' capacity, or the run's largest peak."""
        capacities = [rank.memory.capacity_bytes for rank in devices(run)]
        known = bool(capacities) and all(capacities)
        full = capacities if known else [peak_bytes(rank) for rank in run.ranks]
        return cls(
            step_ms=largest(run, lambda rank: rank.step_ms.p50),
            peak_bytes=max((value for value in full if value is not None), default=None),
            capacity=known,
        )


SORTS = {
    "step time": BY_TITLE["step"],
    "peak": BY_TITLE["memory"],
    "traffic": BY_TITLE["traffic"],
    "GIL": BY_TITLE["GIL"],
    "idle": BY_TITLE["idle"],
    "queue": BY_TITLE["queue"],
    "GPU": BY_TITLE["GPU"],
}
"""Columns the rows can be sorted by."""

Draw = Callable[[Rank, Scale, int, Palette], Text]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Column:
    """One column, equal only to itself.

    Attributes:
        title: Its heading.
        width: Cells; for a bar, the least.
        rank: Columns with a lower rank are kept longer when room is short.
        draw: Draws a row's cell in exactly that width.
        detail: Draws the line below it, if rows have one.
        bar: Whether it takes a share of the room left over.
    """

    title: str
    width: int
    rank: int
    draw: Draw
    detail: Draw | None = None
    bar: bool = False
    numeric: bool = True


def matches(rank: Rank, terms: Sequence[str]) -> bool:
    """Whether every term is in the row's device, state, host or rank."""
    text = f"{rank.device} {rank.state} {rank.host} rank{rank.rank}".casefold()
    return all(term in text for term in terms)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Columns:
    """The columns shown, and the blanks before each; equal only to itself."""

    columns: tuple[Column, ...]
    gap: int


def columns_for(run: Run, width: int) -> Columns:
    """The columns that fit into `width` cells, with final widths; the least important go first."""
    return _layout(Wants.of(run), width)


@lru_cache(maxsize=8)
def _layout(wants: Wants, width: int) -> Columns:
    kept: list[Column] = []
    wanted = _columns(wants)
    room = width - 1
    for column in sorted(wanted, key=lambda c: c.rank):
        spare = BAR_ROOM if column.rank >= _EXTRA else 0
        if column.width + 1 + spare > room:
            break
        kept.append(column)
        room -= column.width + 1
    wide = room >= 2 * len(kept)
    room -= len(kept) if wide else 0
    bars = sum(column.bar for column in kept)
    extra = min(room // bars, BAR_MAX - BAR_MIN) if bars else 0
    order = [column for column in wanted if column in kept]
    return Columns(
        columns=tuple(replace(c, width=c.width + extra) if c.bar else c for c in order),
        gap=2 if wide else 1,
    )


@dataclass(frozen=True, slots=True)
class Wants:
    """What the columns depend on: cells for the device's and the rank's name, available figures."""

    device: int
    rank: int
    processes: bool
    hosts: bool
    gpus: bool

    @classmethod
    def of(cls, run: Run) -> Wants:
        """Those of a run."""
        return cls(
            device=min(max((len(r.device) for r in run.ranks), default=6), 12),
            rank=len(str(max((r.rank for r in run.ranks), default=0))),
            processes=processes_of(run) > 1,
            hosts=len(run.hosts) > 1,
            gpus=any(rank.gpu.util is not None for rank in run.ranks),
        )


def _columns(wants: Wants) -> list[Column]:
    """Every column such a run could show, left to right."""
    columns = [
        Column(title="device", width=max(wants.device, 6), rank=0, draw=_device, numeric=False),
        Column(title="state", width=10, rank=1, draw=_state, detail=_steps, numeric=False),
        Column(
            title="phases of a step",
            width=BAR_MIN,
            rank=4,
            draw=_phases,
            detail=_phase_figures,
            bar=True,
            numeric=False,
        ),
        Column(title="step time", width=9, rank=2, draw=_figure(_step_ms)),
        Column(
            title="memory at peak",
            width=BAR_MIN,
            rank=5,
            draw=_memory,
            detail=_memory_figures,
            bar=True,
            numeric=False,
        ),
        Column(title="peak", width=9, rank=3, draw=_figure(_peak), detail=_figure(_capacity)),
        Column(title="traffic", width=9, rank=6, draw=_figure(_traffic)),
        Column(title="sent", width=9, rank=10, draw=_figure(_sent)),
        Column(title="received", width=9, rank=11, draw=_figure(_received)),
        Column(title="GIL", width=5, rank=7, draw=_figure(lambda r: fmt.share(r.gil_wait))),
        Column(title="idle", width=5, rank=8, draw=_figure(lambda r: fmt.share(r.idle))),
        Column(title="queue", width=6, rank=9, draw=_figure(lambda r: fmt.share(r.runqueue_wait))),
    ]
    if wants.processes:
        digits = max(wants.rank, 4)
        columns.insert(
            0, Column(title="rank", width=digits, rank=0, draw=_figure(lambda r: str(r.rank)))
        )
    if wants.hosts:
        columns.insert(2, Column(title="host", width=12, rank=12, draw=_host, numeric=False))
    if wants.gpus:
        columns.append(
            Column(title="GPU", width=5, rank=7, draw=_figure(lambda r: fmt.share(r.gpu.util)))
        )
    return columns


def head_line(
    run: Run, layout: Columns, palette: Palette, sorted_by: str = "", turned: bool = False
) -> Text:
    """The headings, with the amount of a full bar if there is room, and the sorting.

    Clicks read the style's meta: the title of a column to sort by.
    """
    scale = Scale.of(run)
    step, peak = fmt.millis(scale.step_ms), fmt.size(scale.peak_bytes)
    return _head_line(step, peak, layout, palette, sorted_by, turned)


@lru_cache(maxsize=8)
def _head_line(
    step: str, peak: str, layout: Columns, palette: Palette, sorted_by: str, turned: bool
) -> Text:
    full = {
        "phases of a step": f"phases · full {step}",
        "memory at peak": f"memory · full {peak}",
    }
    parts: list[Part] = [(" ", palette.muted)]
    for column in layout.columns:
        title = full.get(column.title, column.title)
        if cell_len(title) > column.width:
            title = column.title.split()[0] if column.bar else column.title
        chosen = column.title == sorted_by and bool(sorted_by)
        if chosen:
            arrow = "▲" if turned else "▼"
            title = f"{title if cell_len(title) < column.width else title.split()[0]}{arrow}"
        align = right if column.numeric else left
        style = palette.strong if chosen else palette.muted
        if column.title in SORTS:
            style += Style(meta={"sort": column.title})
        parts.append((" " * layout.gap + align(title, column.width), style))
    return line(*parts)


def row_lines(
    rank: Rank,
    layout: Columns,
    scale: Scale,
    palette: Palette,
    *,
    height: int,
    chosen: bool,
    named: str = "",
) -> list[Text]:
    """One row as `height` lines: bars and figures, then (from 2) their details, then a blank.

    Args:
        rank: The row.
        layout: Its columns.
        scale: The amounts of full bars.
        palette: Colours.
        height: Lines.
        chosen: Whether the cursor is there.
        named: The severity of a finding about it, "" for none.
    """
    marks = "▸" if chosen else " ", named
    lines = [_row(marks, [(c, c.draw) for c in layout.columns], layout.gap, rank, scale, palette)]
    if height > 1:
        details = [(c, c.detail) for c in layout.columns]
        lines.append(_row((" ", ""), details, layout.gap, rank, scale, palette))
    lines += [Text() for _ in range(height - 2)]
    return lines


def _row(
    marks: tuple[str, str],
    cells: Sequence[tuple[Column, Draw | None]],
    gap: int,
    rank: Rank,
    scale: Scale,
    palette: Palette,
) -> Text:
    drawn = [
        draw(rank, scale, column.width, palette) if draw else _to_left("", column.width, _BLANK)
        for column, draw in cells
    ]
    # Most rows have not changed: they are made of the very same cells.
    key = (marks, gap, palette, *map(id, drawn))
    known = _ROWS.get(key)
    if known is None:
        if len(_ROWS) >= _MOST_ROWS:
            _ROWS.clear()
        blank = " " * gap, _BLANK
        parts = [part for cell in drawn for part in (blank, cell)]
        cursor, named = marks
        if named:  # in a blank before the first cell
            sign = SEVERITY_GLYPHS.get(named, "·") + " " * (gap - 1)
            parts[0] = (sign, palette.severity(named))
        known = _ROWS[key] = (line((cursor, palette.accent), *parts), drawn)
    return known[0]


_ROWS: dict[tuple[object, ...], tuple[Text, list[Text]]] = {}
"""Rows by the identities of their cells, which are kept as long as the row is."""

_MOST_ROWS = 1024


def _figure(value: Callable[[Rank], str]) -> Draw:
    """A right-aligned figure, faint if unknown."""

    def draw(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
        text = value(rank)
        return _to_right(text, width, palette.muted if text == fmt.UNKNOWN else palette.text)

    return draw


# Most cells have not changed.
@lru_cache(maxsize=4096)
def _to_right(text: str, width: int, style: Style) -> Text:
    return line((right(text, width), style))


@lru_cache(maxsize=4096)
def _to_left(text: str, width: int, style: Style) -> Text:
    return line((left(text, width), style))


def _device(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    return _to_left(clean(rank.device), width, palette.strong)


def _host(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    host = rank.host if len(rank.host) <= width else rank.host.partition(".")[0]
    return _to_left(clean(host), width, palette.muted)


def _state(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    glyph = STATE_GLYPHS.get(rank.state, "·")
    return _to_left(f"{glyph} {clean(rank.state)}", width, palette.state(rank.state))


def _steps(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    steps = fmt.count(rank.steps)
    text = f"  step {steps}"
    return _to_left(text if len(text) <= width else steps, width, palette.muted)


def _phases(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    return stacked(phase_parts(rank.phases_ms), PHASE_KINDS, width, palette, total=scale.step_ms)


def _memory(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    full = rank.memory.capacity_bytes if scale.capacity else scale.peak_bytes
    return _memory_bar(rank.memory, full, width, palette)


@lru_cache(maxsize=1024)
def _memory_bar(memory: MemoryUse, full: float | None, width: int, palette: Palette) -> Text:
    """Memory is sampled now and then, and unchanged in between."""
    return stacked(memory_parts(memory), MEMORY_KINDS, width, palette, total=full)


def _phase_figures(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    chosen = largest_figures(phase_parts(rank.phases_ms), PHASE_KINDS, fmt.millis, width)
    return _to_width(chosen, width, palette)


@lru_cache(maxsize=1024)
def _to_width(chosen: tuple[tuple[str, str], ...], width: int, palette: Palette) -> Text:
    return fitted(figures_line(chosen, palette), width)


def _memory_figures(rank: Rank, scale: Scale, width: int, palette: Palette) -> Text:
    return _figures_of(rank.memory, width, palette)


@lru_cache(maxsize=1024)
def _figures_of(memory: MemoryUse, width: int, palette: Palette) -> Text:
    return _to_width(
        largest_figures(memory_parts(memory), MEMORY_KINDS, fmt.size, width), width, palette
    )


def _step_ms(rank: Rank) -> str:
    return fmt.millis(rank.step_ms.p50)


def _peak(rank: Rank) -> str:
    return fmt.size(rank.memory.peak_bytes)


def _capacity(rank: Rank) -> str:
    capacity = rank.memory.capacity_bytes
    return f"/{fmt.size(capacity)}" if capacity is not None else ""


def _traffic(rank: Rank) -> str:
    return fmt.size(traffic_bytes(rank))


def _sent(rank: Rank) -> str:
    return fmt.size(rank.sent_bytes_per_step)


def _received(rank: Rank) -> str:
    return fmt.size(rank.received_bytes_per_step)
