"""What changes on the terminal, and nothing else.

Textual writes every line of a widget that was refreshed, styles and all; most of a dashboard stays
as it was, which over SSH is most of what is sent. `Screenful` remembers what stands on the terminal
and turns an update into the cells that differ. A full update is written whole, as ever: a screen
that something else has written over is mended by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import get_character_cell_size
from rich.console import COLOR_SYSTEMS, Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from dpwatch.tui.render.private_api import ChopsUpdate, CompositorUpdate, LayoutUpdate

Cell = tuple[str, "Style | None"]
"""A character (with what combines with it) and its style; "" is a wide one's second half."""

BRIDGE = 4
"""So many unchanged cells between two changed ones are cheaper to write than to leap over."""


class Screenful:
    """What stands on the terminal, by line and by the column each piece begins at."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[int, Strip]] = {}

    def forget(self) -> None:
        """What stands there is not known any more: the next update is written whole."""
        self._pieces.clear()

    def narrowed(self, update: CompositorUpdate) -> CompositorUpdate:
        """The update, to be reduced to what differs once it is written."""
        return Narrowed(self, update)

    def took(self, update: LayoutUpdate) -> None:
        """All of it is written now."""
        self.forget()
        lines = update.strips = [list(line) for line in update.strips]
        for y, line in enumerate(lines, update.region.y):
            x = update.region.x
            pieces = self._pieces[y] = {}
            for strip in line:
                pieces[x] = strip
                x += strip.cell_length

    def changes(self, update: ChopsUpdate) -> Iterator[tuple[int, int, list[Cell]]]:
        """Column, line and cells of what an update changes; it is taken as written.

        Pieces are taken whole though an update may cover a part: what is beside has not changed.
        """
        for y, x1, x2 in update.spans:
            known = self._pieces.setdefault(y, {})
            for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
                if strip is None or x >= x2 or end <= x1:
                    continue
                before = known.get(x)
                if before is None or before.cell_length != strip.cell_length:
                    # Otherwise cut than before: what lay there and reaches beyond is not known.
                    for at, old in list(known.items()):
                        if at < end and at + old.cell_length > x:
                            del known[at]
                    yield x, y, list(cells(strip))
                elif before is not strip:
                    for at, run in runs(list(before), list(strip)):
                        yield x + at, y, run
                known[x] = strip


class Narrowed(CompositorUpdate):
    """An update that is compared with what stands there when it is written, and not before."""

    def __init__(self, screenful: Screenful, update: CompositorUpdate) -> None:
        self._screenful = screenful
        self._update = update

    def render_segments(self, console: Console) -> str:
        """As terminal sequences; a style is told only where it changes."""
        update = self._update
        if not isinstance(update, ChopsUpdate):
            if isinstance(update, LayoutUpdate):
                self._screenful.took(update)
            else:
                self._screenful.forget()
            return update.render_segments(console)
        system = COLOR_SYSTEMS[console.color_system or "truecolor"]
        parts: list[str] = []
        now, drawn = "", None
        for x, y, run in self._screenful.changes(update):
            parts.append(f"\x1b[{y + 1};{x + 1}H")
            for text, style in run:
                if style is not drawn:
                    drawn, code = style, Strip.render_ansi(style, system) if style else ""
                    if code != now:
                        now = code
                        parts.append(f"\x1b[0;{code}m" if code else "\x1b[0m")
                parts.append(text)
        if now:
            parts.append("\x1b[0m")
        return "".join(parts)


def cells(segments: Iterable[Segment]) -> Iterator[Cell]:
    """The cells of a line; what takes none goes with the character before it."""
    held: Cell | None = None
    for text, style, _ in segments:
        if text.isascii():
            if held is not None:
                yield held
                held = None
            if text:
                yield from ((char, style) for char in text[:-1])
                held = (text[-1], style)
            continue
        for char in text:
            width = get_character_cell_size(char)
            if not width and held is not None:
                held = (held[0] + char, held[1])
                continue
            if held is not None:
                yield held
            held = (char, style)
            if width == 2:
                yield held
                held = ("", style)
    if held is not None:
        yield held


def runs(before: Sequence[Segment], after: Sequence[Segment]) -> Iterator[tuple[int, list[Cell]]]:
    """Stretches of a line that are to be written over what it was, with where each begins."""
    same = 0
    most = min(len(before), len(after))
    while same < most and before[same] == after[same]:
        same += 1
    tail = 0
    while tail < most - same and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    offset = sum(segment.cell_length for segment in after[:same])
    old_cells = list(cells(before[same : len(before) - tail]))
    new_cells = list(cells(after[same : len(after) - tail]))
    if len(old_cells) != len(new_cells):  # something odd that takes no cell
        yield offset, new_cells
        return
    start = end = -1
    for at, (old, new) in enumerate(zip(old_cells, new_cells, strict=True)):
        if old[0] == new[0] and (old[1] is new[1] or old[1] == new[1]):
            continue
        if start >= 0 and at - end > BRIDGE:
            yield _whole(new_cells, offset, start, end)
            start = -1
        if start < 0:
            start = at
        end = at + 1
    if start >= 0:
        yield _whole(new_cells, offset, start, end)


def _whole(line: Sequence[Cell], offset: int, start: int, end: int) -> tuple[int, list[Cell]]:
    """No half of a wide character."""
    while start and not line[start][0]:
        start -= 1
    while end < len(line) and not line[end][0]:
        end += 1
    return offset + start, list(line[start:end])
