"""The strategies run so far, side by side: a row per run, to sort, filter and open. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style

from dpwatch.run.derive.comparison import figures, labels, traffic_bytes
from dpwatch.run.model.snapshot import RunView, Snapshot
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.layout import Block, beside, boxed
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.plot import Series, plot
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, wrapped
from dpwatch.tui.snapshots.frame import Frame, latest_by_strategy
from dpwatch.tui.views.compare.columns import BY_KEY, COLUMNS, Column, Entry
from dpwatch.tui.views.compare.metrics import METRICS, Metric
from dpwatch.tui.views.compare.rows import Table, head_line, legend, row_line, table_for
from dpwatch.tui.views.compare.sentences import verdict

AS_RUN, BY_NAME = "", "strategy"
"""How rows can be sorted besides by column: by the order of the runs, or by name."""

_BESIDE_WIDTH = 110
_TALL = 30
_PLOT_LINES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The user's choices in the comparison.

    Attributes:
        metric: Index of the metric drawn as bars, in `metrics_of`.
        sort: One of `sorts_of`.
        reverse: Against that column's usual direction (largest first; names from A on).
        terms: Words that a row's strategy, title or state must have.
        run_id: The row under the cursor, None for the first.
    """

    metric: int = 0
    sort: str = AS_RUN
    reverse: bool = False
    terms: tuple[str, ...] = ()
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The lines, the index of the first row, and the rows' runs."""

    lines: Block
    first_row: int
    run_ids: tuple[str, ...]


def metrics_of(frame: Frame | None) -> Sequence[Metric]:
    """The metrics to choose from; those of a search if there is one."""
    return [each for each in METRICS if not each.searched or _searched(frame)]


def sorts_of(frame: Frame | None) -> Sequence[str]:
    """How rows can be sorted, in the order of the keys `,` and `.`."""
    columns = [each.key for each in COLUMNS if not each.searched or _searched(frame)]
    return (AS_RUN, BY_NAME, *columns)


def _searched(frame: Frame | None) -> bool:
    """Whether largest batches are, or have been, searched for."""
    if frame is None:
        return False
    seen = frame.snapshot
    return seen.search is not None or any(view.largest_batch for view in seen.runs)


def compare_lines(frame: Frame, width: int, palette: Palette) -> Block:
    """All lines with the initial choices."""
    return draw(frame, width, 24, palette, Choice()).lines


def draw(frame: Frame, width: int, height: int, palette: Palette, choice: Choice) -> Drawn:
    """The table by the chosen metric, then sentences, the other metrics, the losses.

    Args:
        frame: What is known.
        width: Cells.
        height: Lines on screen: if there are enough, the sentences come before the table.
        palette: Theme.
        choice: The user's choices.
    """
    views = latest_by_strategy(frame.snapshot)
    if not views:
        note = line(("nothing to compare yet: no run so far", palette.muted))
        return Drawn(lines=[note], first_row=0, run_ids=())
    every = _entries(views)
    styles = {
        view.run.run_id: palette.series[index % len(palette.series)]
        for index, view in enumerate(views)
    }
    rows = ordered(every, choice)
    sentences = _sentences(views, frame.snapshot, width, palette)
    metrics = metrics_of(frame)
    metric = metrics[choice.metric % len(metrics)]
    bar_of_choices = _bar_of_choices(metric, metrics, choice, width, palette)
    above = [*sentences, Text(), *bar_of_choices] if height >= _TALL else bar_of_choices
    table = table_for(
        metric,
        every,
        width,
        sort=choice.sort,
        reverse=choice.reverse,
        searched=_searched(frame),
    )
    above.append(head_line(table, palette))
    body = [_row(each, table, styles, palette, choice, rows) for each in rows]
    if not rows:
        body = [line(("no run matches: esc clears the filter", palette.muted))]
    below = [*legend(metric, width, palette), *_note_on_times(every, width, palette)]
    below += sentences if height < _TALL else []
    below += _servers(every, width, palette)
    others = [each for each in metrics if each is not metric]
    below += _sections(rows or every, others, views, styles, width, palette)
    return Drawn(
        lines=[fitted(each, width) for each in (*above, *body, *below)],
        first_row=len(above),
        run_ids=tuple(each.figures.run.run_id for each in rows),
    )


def _entries(views: Sequence[RunView]) -> list[Entry]:
    found = [figures(view.run, view.largest_batch) for view in views]
    single = next((each for each in found if each.run.strategy == "single"), None)
    names = [clean(name, 40) or fmt.UNKNOWN for name in labels([each.run for each in found])]
    return [
        Entry(name=name, figures=each, single=single)
        for name, each in zip(names, found, strict=True)
    ]


def ordered(entries: Sequence[Entry], choice: Choice) -> list[Entry]:
    """The entries that match, sorted as chosen; unknown figures come last."""
    kept = [each for each in entries if _matches(each, choice.terms)]
    if choice.sort == AS_RUN:
        return kept[::-1] if choice.reverse else kept
    if choice.sort == BY_NAME:
        return sorted(kept, key=lambda each: each.name, reverse=choice.reverse)
    column = BY_KEY[choice.sort]
    known = [each for each in kept if column.value(each) is not None]
    unknown = [each for each in kept if column.value(each) is None]
    known.sort(key=lambda each: column.value(each) or 0.0, reverse=not choice.reverse)
    return known + unknown


def _matches(entry: Entry, terms: Sequence[str]) -> bool:
    run = entry.figures.run
    text = f"{run.strategy} {run.title} {run.state}".casefold()
    return all(term in text for term in terms)


def _row(
    entry: Entry,
    table: Table,
    styles: dict[str, Style],
    palette: Palette,
    choice: Choice,
    rows: Sequence[Entry],
) -> Text:
    run_id = entry.figures.run.run_id
    ids = [each.figures.run.run_id for each in rows]
    chosen = run_id == (choice.run_id if choice.run_id in ids else ids[0])
    result = row_line(entry, table, palette, style=styles[run_id], chosen=chosen)
    if chosen:
        result.stylize_before(palette.cursor)
    return result


def _bar_of_choices(
    metric: Metric, metrics: Sequence[Metric], choice: Choice, width: int, palette: Palette
) -> Block:
    """The metrics to choose from, and what the rows are sorted by."""
    chips = line(("m ", palette.accent))
    for index, each in enumerate(metrics):
        style = palette.strong + Style(underline=True) if each is metric else palette.muted
        chips.append(each.name, style + Style(meta={"metric": index}))
        chips.append("  ", palette.muted)
    column = BY_KEY.get(choice.sort)
    name = f"by {_full_name(column) if column else choice.sort}" if choice.sort else "in run order"
    sort = line((", . ", palette.accent), (name, palette.text), ("  r ", palette.accent))
    sort.append("↑" if choice.reverse else "↓", palette.text)
    room = width - chips.cell_len
    first = line(fitted(chips, width - min(sort.cell_len, room)), sort)
    return [first, line((metric.title, palette.muted))]


def _full_name(column: Column) -> str:
    over = {"peak_single": "peak", "kept_single": "kept", "rate_single": "samples/s"}
    return f"{over[column.key]} {column.title}" if column.key in over else column.title


def _sentences(views: Sequence[RunView], snapshot: Snapshot, width: int, palette: Palette) -> Block:
    if len(views) == 1:
        name = clean(views[0].run.strategy, 16) or fmt.UNKNOWN
        text = f"One run so far ({name}); the next strategy will appear beside it."
        return wrapped(text, width, palette.muted)
    told = verdict(snapshot) or ["no figures to compare yet"]
    return [each for text in told for each in wrapped(text, width, palette.strong)]


def _note_on_times(entries: Sequence[Entry], width: int, palette: Palette) -> Block:
    """A note if times can't be compared."""
    short = [each for each in entries if each.figures.cores_short]
    if short:
        cores = {each.figures.run.cores for each in short} - {None}
        number = f"{cores.pop()} " if len(cores) == 1 else ""
        text = f"* this machine's {number}cores are too few: times measure it, not the strategy"
        return wrapped(text, width, palette.warn)
    if any(each.figures.run.devices == "virtual" for each in entries):
        text = (
            "Bytes depend on the strategy only; times depend on this machine, since virtual "
            "devices share its cores."
        )
        return wrapped(text, width, palette.muted)
    return []


def _servers(entries: Sequence[Entry], width: int, palette: Palette) -> Block:
    """The servers that are not devices."""
    lines: Block = []
    for each in entries:
        host = each.figures.host
        if host is not None:
            peak, moved = fmt.size(host.memory.peak_bytes), fmt.size(traffic_bytes(host))
            text = f"{each.name}: its server on the host peaks at {peak} and moves {moved} per step"
            lines += wrapped(text, width, palette.muted)
    return lines


def _sections(
    rows: Sequence[Entry],
    metrics: Sequence[Metric],
    views: Sequence[RunView],
    styles: dict[str, Style],
    width: int,
    palette: Palette,
) -> Block:
    """The other metrics and the losses, in boxes, two side by side if they fit."""
    two = width >= _BESIDE_WIDTH
    half = (width - 1) // 2
    drawn: list[Block] = []
    for index in range(len(metrics) + 1):
        room = (half if index % 2 == 0 else width - half - 1) if two else width
        if index < len(metrics):
            drawn.append(_box(metrics[index], rows, styles, room, palette))
        else:
            drawn.append(_losses(views, styles, room, len(rows) + 3, palette))
    lines: Block = [Text()]
    for index in range(0, len(drawn), 2 if two else 1):
        lines += beside(drawn[index : index + 2]) if two else drawn[index]
    return lines


def _box(
    metric: Metric, rows: Sequence[Entry], styles: dict[str, Style], width: int, palette: Palette
) -> Block:
    table = table_for(metric, rows, width - 4, more=False)
    body = [head_line(table, palette)]
    for each in rows:
        style = styles[each.figures.run.run_id]
        body.append(row_line(each, table, palette, style=style))
    return boxed(metric.short_title, body, width, len(body) + 2, palette)


def _losses(
    views: Sequence[RunView], styles: dict[str, Style], width: int, height: int, palette: Palette
) -> Block:
    names = [clean(name, 24) or fmt.UNKNOWN for name in labels([view.run for view in views])]
    series = [
        Series(name=name, curve=view.history.loss, style=styles[view.run.run_id])
        for name, view in zip(names, views, strict=True)
    ]
    rows = max(height - 2, _PLOT_LINES)
    body = plot(series, width - 4, rows, palette, label=lambda value: fmt.number(value, 3))
    return boxed("Loss by step", body, width, len(body) + 2, palette)
