"""Writes only the cells that change on the terminal.

Textual writes every line of a refreshed widget, with styles; most of a dashboard stays the same,
and over SSH that is most of the traffic. `ScreenBuffer` remembers what is on the terminal and turns
an update into the cells that differ. Full updates are written whole, so they repair a screen that
something else has written over.
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
"""A character (with combining ones) and its style; "" is the second half of a wide one."""

BRIDGE = 4
"""Up to this many unchanged cells between changed ones are cheaper to rewrite than to skip."""


class ScreenBuffer:
    """What is on the terminal, by line and by the column where each piece begins."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[int, Strip]] = {}

    def forget(self) -> None:
        """The content is no longer known: the next update is written whole."""
        self._pieces.clear()

    def narrowed(self, update: CompositorUpdate) -> CompositorUpdate:
        """The update, reduced to what differs at the time it is written."""
        return Narrowed(self, update)

    def took(self, update: LayoutUpdate) -> None:
        """Records a full update as written."""
        self.forget()
        lines = update.strips = [list(line) for line in update.strips]
        for y, line in enumerate(lines, update.region.y):
            x = update.region.x
            pieces = self._pieces[y] = {}
            for strip in line:
                pieces[x] = strip
                x += strip.cell_length

    def changes(self, update: ChopsUpdate) -> Iterator[tuple[int, int, list[Cell]]]:
        """Column, line and cells of what an update changes, which is recorded as written.

        Pieces are recorded whole though an update may cover only a part: the rest has not changed.
        """
        for y, x1, x2 in update.spans:
            known = self._pieces.setdefault(y, {})
            for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
                if strip is None or x >= x2 or end <= x1:
                    continue
                before = known.get(x)
                if before is None or before.cell_length != strip.cell_length:
                    # Cut differently than before: what overlaps it is no longer known.
                    for at, old in list(known.items()):
                        if at < end and at + old.cell_length > x:
                            del known[at]
                    yield x, y, list(cells(strip))
                elif before is not strip:
                    for at, run in runs(list(before), list(strip)):
                        yield x + at, y, run
                known[x] = strip


class Narrowed(CompositorUpdate):
    """An update that is compared with the terminal's content when it is written."""

    def __init__(self, screen_buffer: ScreenBuffer, update: CompositorUpdate) -> None:
        self._screen_buffer = screen_buffer
        self._update = update

    def render_segments(self, console: Console) -> str:
        """The update as terminal sequences, with a style only where it changes."""
        update = self._update
        if not isinstance(update, ChopsUpdate):
            if isinstance(update, LayoutUpdate):
                self._screen_buffer.took(update)
            else:
                self._screen_buffer.forget()
            return update.render_segments(console)
        system = COLOR_SYSTEMS[console.color_system or "truecolor"]
        parts: list[str] = []
        now, drawn = "", None
        for x, y, run in self._screen_buffer.changes(update):
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
    """The cells of a line; zero-width characters belong to the character before."""
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
    """Stretches of a line to write over its old content, with the cell where each begins."""
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
    if len(old_cells) != len(new_cells):  # unexpected zero-width content
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
    """Extends a stretch so that it splits no wide character."""
    while start and not line[start][0]:
        start -= 1
    while end < len(line) and not line[end][0]:
        end += 1
    return offset + start, list(line[start:end])
