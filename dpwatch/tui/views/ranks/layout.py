"""Where each rank's cell of the heatmap is: hosts together, cells as large as fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from dpwatch.run.model.snapshot import Rank
from dpwatch.text_safety import clean

FIGURE_CELL = 12
"""Width of a cell with its figure beside the glyph."""
_CELLS = (FIGURE_CELL, 3, 2, 1)
_LABEL_MAX = 12
_GAP = 2
_EVEN = (128, 64, 32, 16, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A cell for each rank, in the order of the ranks given.

    Attributes:
        cell: Width of a rank's cell.
        places: Row and column of each.
        rows: Indices of the ranks in each row, left to right.
        labels: Column and text of the labels before them.
    """

    cell: int
    places: tuple[tuple[int, int], ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    labels: tuple[tuple[tuple[int, str], ...], ...] = ()

    def at(self, row: int, x: int) -> int | None:
        """The rank whose cell covers that place."""
        for index in self.rows[row] if 0 <= row < len(self.rows) else ():
            if 0 <= x - self.places[index][1] < self.cell:
                return index
        return None

    def beyond(self, index: int, by: int) -> int:
        """The rank `by` rows further down, in the nearest column."""
        row, x = self.places[index]
        wanted = max(min(row + by, len(self.rows) - 1), 0)
        return min(self.rows[wanted], key=lambda i: abs(self.places[i][1] - x))


def by_host(ranks: Sequence[Rank]) -> list[Rank]:
    """The ranks grouped by host, hosts in the order of their first rank."""
    hosts: dict[str, list[Rank]] = {}
    for rank in ranks:
        hosts.setdefault(rank.host, []).append(rank)
    return [rank for some in hosts.values() for rank in some]


def layout(ranks: Sequence[Rank], width: int, height: int) -> Layout:
    """Cells as large as fit into `height` rows; else the smallest, and it scrolls.

    Args:
        ranks: As `by_host` orders them.
        width: Cells across.
        height: Rows on the screen.
    """
    for cell in _CELLS:
        found = _laid(ranks, width, height, cell)
        if len(found.rows) <= height:
            break
    return found


def _laid(ranks: Sequence[Rank], width: int, height: int, cell: int) -> Layout:
    names = short_names([rank.host for rank in ranks])
    sizes: dict[str, int] = {}
    for rank in ranks:
        sizes[rank.host] = sizes.get(rank.host, 0) + 1
    numbers = max((len(str(rank.rank)) for rank in ranks), default=1)
    several = len(sizes) > 1
    label = max(max((len(name) for name in names.values()), default=1) if several else 0, numbers)
    block = label + 1 + max(sizes.values(), default=1) * cell + _GAP
    if several and block - _GAP <= width:
        return _in_columns(sizes, names, block, label, width, cell)
    return _wrapped(ranks, sizes, names if several else {}, label, width, height, cell)


def _in_columns(
    sizes: dict[str, int], names: dict[str, str], block: int, label: int, width: int, cell: int
) -> Layout:
    """Hosts side by side, each with its cells in one line."""
    across = max((width + _GAP) // block, 1)
    starts = list(accumulate(sizes.values(), initial=0))
    places: list[tuple[int, int]] = []
    rows: list[tuple[int, ...]] = []
    labels: list[tuple[tuple[int, str], ...]] = []
    for number, (host, size) in enumerate(sizes.items()):
        row, column = divmod(number, across)
        left = column * block
        places += [(row, left + label + 1 + i * cell) for i in range(size)]
        indices = tuple(range(starts[number], starts[number] + size))
        if column == 0:
            rows.append(())
            labels.append(())
        rows[-1] += indices
        labels[-1] += ((left, names[host].rjust(label)),)
    return Layout(cell=cell, places=tuple(places), rows=tuple(rows), labels=tuple(labels))


def _wrapped(
    ranks: Sequence[Rank],
    sizes: dict[str, int],
    names: dict[str, str],
    label: int,
    width: int,
    height: int,
    cell: int,
) -> Layout:
    """Each host on as many lines as it takes; a line starts with its first rank's number."""
    room = max((width - label - 1) // cell, 1)
    per_line = _per_line(list(sizes.values()), room, height)
    places: list[tuple[int, int]] = []
    rows: list[tuple[int, ...]] = []
    labels: list[tuple[tuple[int, str], ...]] = []
    start = 0
    for host, size in sizes.items():
        for first in range(0, size, per_line):
            number = min(per_line, size - first)
            indices = range(start + first, start + first + number)
            places += [(len(rows), label + 1 + i * cell) for i in range(number)]
            rows.append(tuple(indices))
            name = names.get(host) if first == 0 else None
            labels.append(((0, (name or str(ranks[indices[0]].rank)).rjust(label)),))
        start += size
    return Layout(cell=cell, places=tuple(places), rows=tuple(rows), labels=tuple(labels))


def _per_line(sizes: Sequence[int], room: int, height: int) -> int:
    """A round number of cells per line if all lines then fit, else as many as there is room for."""
    for even in _EVEN:
        if even <= room and sum(-(-size // even) for size in sizes) <= height:
            return even
    return room - room % 8 if room > 8 else room


def short_names(hosts: Sequence[str]) -> dict[str, str]:
    """Hosts by what distinguishes them: without a common domain, long names by their end."""
    unique = list(dict.fromkeys(hosts))
    shown = {host: clean(host, 200) or "?" for host in unique}
    domains = {name.partition(".")[2] for name in shown.values()}
    if len(domains) == 1 and len(unique) > 1:
        shown = {host: name.partition(".")[0] for host, name in shown.items()}
    return {
        host: name if len(name) <= _LABEL_MAX else "…" + name[-_LABEL_MAX + 1 :]
        for host, name in shown.items()
    }
