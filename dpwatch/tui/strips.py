"""From a line of text to what Textual draws: on every line of every refresh, so in one go.

The same could be said with `Text.render`, `Strip.adjust_cell_length` and `Strip.apply_style`, at
five times the cost.
"""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

_NULL = Style.null()


def strip_of(
    text: Text, width: int, ground: Style, console: Console, *, under: Style | None = None
) -> Strip:
    """A line as a strip of exactly `width` cells, on `under` on the widget's `ground`."""
    pieces = _pieces(text, console)
    segments: list[Segment] = []
    held, held_style = "", ground
    for piece, style in pieces:
        laid = _laid(ground, under or _NULL, style)
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
    """One style for the three of them; the same one again for the same three."""
    return ground + under + style


def _pieces(text: Text, console: Console) -> list[tuple[str, Style]]:
    """The text's pieces with their styles.

    Spans follow each other where lines are put together; what overlaps is left to Rich.
    """
    plain, at = text.plain, 0
    if not text.spans:
        return [(plain, _NULL)]
    base = _NULL if text.style == "" else console.get_style(text.style, default=_NULL)
    pieces: list[tuple[str, Style]] = []
    for start, end, named in text.spans:
        if start < at:
            return [(segment.text, segment.style or _NULL) for segment in text.render(console)]
        if start > at:
            pieces.append((plain[at:start], base))
        style = named if isinstance(named, Style) else console.get_style(named, default=_NULL)
        pieces.append((plain[start:end], style if base is _NULL else base + style))
        at = end
    if at < len(plain):
        pieces.append((plain[at:], base))
    return pieces
