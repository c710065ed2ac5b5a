"""Lines of styled text.

A line is built piece by piece and never parsed as markup. Text from a training process (titles,
hosts, reasons, devices) passes `text_safety.clean` first.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.style import Style

from dpwatch.tui.draw.styled_line import Piece, Text, joined

Part = Piece | Text


def clip(text: str, width: int) -> str:
    """The text, shortened with `…` to at most `width` cells."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…"


def left(text: str, width: int) -> str:
    """Clipped and padded on the right to exactly `width` cells."""
    return set_cell_size(clip(text, width), width)


def right(text: str, width: int) -> str:
    """Clipped and padded on the left to exactly `width` cells."""
    clipped = clip(text, width)
    return " " * (width - cell_len(clipped)) + clipped


def line(*parts: Part) -> Text:
    """A line made of (text, style) pairs and of other lines."""
    return joined(parts)


def fitted(text: Text, width: int) -> Text:
    """The line, cut with `…` or padded to exactly `width` cells."""
    if width <= 0:
        return Text()
    found = text.cell_len
    if found > width:
        text = text.copy()
        text.truncate(width)
        found = text.cell_len
    return line(text, (" " * (width - found), _BARE))


_BARE = Style.null()


def wrapped(text: str, width: int, style: Style, indent: int = 0) -> list[Text]:
    """A paragraph broken at spaces, indented by `indent` cells; words that are too long are cut."""
    room = max(width - indent, 8)
    lines: list[str] = []
    current = ""
    for word in text.split():
        for piece in _pieces(word, room):
            if current and cell_len(current) + 1 + cell_len(piece) > room:
                lines.append(current)
                current = piece
            else:
                current = f"{current} {piece}" if current else piece
    lines.append(current)
    return [line((" " * indent + each, style)) for each in lines]


def _pieces(word: str, room: int) -> Iterable[str]:
    while cell_len(word) > room:
        piece = set_cell_size(word, room).rstrip()
        yield piece
        word = word[len(piece) :]
    yield word
