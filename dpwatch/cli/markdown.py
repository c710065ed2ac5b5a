"""The comparison of strategies as a Markdown table, to paste into an issue or a document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dpwatch.cli.output import number, percent
from dpwatch.run.derive.comparison import Figures, figures, labels, traffic_bytes
from dpwatch.run.model.largest_batch import LargestBatch
from dpwatch.run.model.snapshot import Rank, Run
from dpwatch.text_safety import printable
from dpwatch.units import UNKNOWN, mebibytes

_CATEGORIES = ("params", "grads", "optimizer", "activations")

Cell = Callable[[Figures], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    title: str
    cell: Cell


def markdown(runs: Sequence[Run], largest_batch: Mapping[str, LargestBatch] | None = None) -> str:
    """A table with a row per run, and what its figures mean below it.

    Args:
        runs: In the order of the rows.
        largest_batch: Largest batches that were searched for, by run id.

    Returns:
        Markdown whose last line ends without a newline.
    """
    rows = [figures(run, (largest_batch or {}).get(run.run_id)) for run in runs]
    columns = _columns(rows)
    body = [[column.cell(row) for column in columns] for row in rows]
    return "\n".join([*table([c.title for c in columns], body), "", *_notes(rows)])


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, also aligned as plain text: all columns but the first to the right.

    Cells are escaped: nothing in one can end it or be read as markup.
    """
    cells = [[_safe(cell) for cell in row] for row in rows]
    widths = [max(3, len(title), *(len(row[i]) for row in cells)) for i, title in enumerate(titles)]
    rule = [("-" * width) if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [_line(each, widths) for each in (titles, rule, *cells)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _columns(rows: Sequence[Figures]) -> list[_Column]:
    names = dict(zip(map(id, rows), labels([row.run for row in rows]), strict=True))
    batch = any(row.largest_batch is not None for row in rows)
    host = any(row.host is not None for row in rows)
    return [
        _Column(title="strategy", cell=lambda r: _name(r.run, names[id(r)])),
        *(_Column(title=f"{name} MiB", cell=_category(name)) for name in _CATEGORIES),
        _Column(title="peak d0 MiB", cell=lambda r: _size(r.peak0)),
        _Column(title="peak others MiB", cell=lambda r: _size(r.peak_others_max)),
        *([_Column(title="peak host MiB", cell=_peak_host)] if host else ()),
        _Column(title="traffic d0 MiB/step", cell=lambda r: _size(r.traffic0)),
        _Column(title="traffic others MiB/step", cell=lambda r: _size(r.traffic_others)),
        _Column(title="step ms", cell=lambda r: number(r.step_ms, 1)),
        _Column(title="samples/s", cell=lambda r: number(r.samples_per_s, 1)),
        _Column(title="exposed", cell=lambda r: percent(r.exposed_share)),
        _Column(title="GIL", cell=lambda r: percent(r.gil_wait)),
        *([_Column(title="largest batch", cell=_batch)] if batch else ()),
        _Column(title="loss", cell=lambda r: number(r.loss, 3)),
    ]


def _name(run: Run, label: str) -> str:
    name = label or UNKNOWN
    return name if run.state in ("running", "finished") else f"{name} ({run.state})"


def _category(name: str) -> Cell:
    """Device 0's bytes at its peak, then a slash and those of the fullest other device."""

    def cell(row: Figures) -> str:
        own, other = (_size(_held(rank, name)) for rank in (row.first, row.fullest))
        return own if row.fullest is None else f"{own} / {other}"

    return cell


def _held(rank: Rank | None, name: str) -> int | None:
    held: int | None = getattr(rank.memory, name) if rank else None
    return held


def _peak_host(row: Figures) -> str:
    return _size(row.host.memory.peak_bytes) if row.host else UNKNOWN


def _batch(row: Figures) -> str:
    return UNKNOWN if row.largest_batch is None else str(row.largest_batch.batch_per_gpu)


def _notes(rows: Sequence[Figures]) -> list[str]:
    """What the columns mean, and what limits the comparison."""
    notes = [
        "params, grads, optimizer and activations: bytes at the moment of the peak, of device 0 / "
        "of the fullest other device. Traffic: sent + received, of device 0 and the median of the "
        "others. Step, exposed communication and GIL wait: of the device with the most.",
    ]
    for row in rows:
        if row.host is not None:
            moved = _size(traffic_bytes(row.host))
            name = row.run.strategy
            notes.append(f"{name}: its server on the host sends and receives {moved} MiB a step.")
    if any(row.cores_short for row in rows):
        notes.append(
            "Times: this machine's cores are short (cpu_oversubscribed), so they measure the "
            "machine; bytes are each strategy's own."
        )
    return [printable(note) for note in notes]


def _size(nbytes: float | None) -> str:
    return mebibytes(nbytes, 2)


def _safe(cell: str) -> str:
    return re.sub(r"([\\|<`\[])", r"\\\1", printable(cell))
