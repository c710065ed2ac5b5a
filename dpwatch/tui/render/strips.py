"""A line of text as a Textual `Strip`, in one pass, since it runs for every redrawn line.

`Text.render`, `Strip.adjust_cell_length` and `Strip.apply_style` would give the same at five times
the cost.
"""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from dpwatch.tui.draw.styled_line import Text

_NULL = Style.null()


def strip_of(text: Text, width: int, ground: Style, *, under: Style | None = None) -> Strip:
    """A line as a strip of exactly `width` cells, over `under`, over the widget's `ground`."""
    segments: list[Segment] = []
    held, held_style = "", ground
    seen: dict[int, Style] = {}  # by identity: hashing a style takes longer than all else here
    for piece, style in text.pieces:
        laid = seen.get(id(style))
        if laid is None:
            laid = seen[id(style)] = _laid(ground, under or _NULL, style)
        if laid is held_style:
            held += piece
            continue
        if held:
            segments.append(Segment(held, held_style))
        held, held_style = piece, laid
    if held:
        segments.append(Segment(held, held_style))
    found = sum(cell_len(segment.text) for segment in segments)
    if found > width:
        return Strip(segments, found).adjust_cell_length(width)
    if found < width:
        segments.append(Segment(" " * (width - found), _laid(ground, under or _NULL, _NULL)))
    return Strip(segments, width)


@lru_cache(maxsize=4096)
def _laid(ground: Style, under: Style, style: Style) -> Style:
    """The three styles combined; the same object for the same three."""
    return ground + under + style
