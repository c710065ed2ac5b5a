"""A line of styled text, as the pieces it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.control import strip_control_codes
from rich.style import Style

Piece = tuple[str, Style]

_NULL = Style.null()


class Text:
    """One line: strings with a style each, one after the other.

    It stands in for `rich.text.Text`, which keeps one string and spans over it. Drawing a dashboard
    is mostly putting lines into lines, and with spans each of them has to be moved every time.

    Attributes:
        pieces: The strings and their styles.
    """

    __slots__ = ("pieces",)

    def __init__(self, plain: str = "", style: Style = _NULL) -> None:
        self.pieces: list[Piece] = []
        self.append(plain, style)

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Text:
        """A line of these pieces, none of them empty."""
        made = cls()
        made.pieces += pieces
        plain = made.plain
        if not plain.isprintable() and plain != strip_control_codes(plain):
            made.pieces = [(strip_control_codes(text), style) for text, style in made.pieces]
        return made

    @property
    def plain(self) -> str:
        """The text without styles."""
        return "".join([text for text, _ in self.pieces])

    @property
    def cell_len(self) -> int:
        """How many cells it takes."""
        return cell_len(self.plain)

    def __len__(self) -> int:
        return sum([len(text) for text, _ in self.pieces])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self.pieces == other.pieces

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"Text({self.plain!r})"

    def copy(self) -> Text:
        """A line that can be changed without changing this one."""
        made = Text()
        made.pieces = self.pieces[:]
        return made

    def append(self, text: str, style: Style = _NULL) -> Text:
        """Adds a string at the end. Returns: this line."""
        if not text.isprintable():
            text = strip_control_codes(text)
        if text:
            self.pieces.append((text, style))
        return self

    def append_text(self, line: Text) -> Text:
        """Adds another line's pieces at the end. Returns: this line."""
        self.pieces += line.pieces
        return self

    def truncate(self, width: int) -> None:
        """Cuts what is beyond `width` cells and ends it with `…`."""
        if self.cell_len <= width:
            return
        kept: list[Piece] = []
        room = width - 1
        for text, style in self.pieces:
            cells = cell_len(text)
            if cells > room:
                kept.append((set_cell_size(text, room) + "…", style))
                break
            kept.append((text, style))
            room -= cells
        self.pieces = kept

    def stylize(self, style: Style, start: int = 0, end: int | None = None) -> None:
        """Lays a style over the characters from `start` to `end`."""
        end = len(self) if end is None else end
        made: list[Piece] = []
        at = 0
        for text, own in self.pieces:
            first, last = max(start - at, 0), max(min(end - at, len(text)), 0)
            at += len(text)
            if first >= last:
                made.append((text, own))
                continue
            parts = ((text[:first], own), (text[first:last], own + style), (text[last:], own))
            made += [part for part in parts if part[0]]
        self.pieces = made

    def stylize_before(self, style: Style) -> None:
        """Lays a style beneath all of it."""
        self.pieces = [(text, style + own) for text, own in self.pieces]


def joined(lines: Sequence[Text | Piece]) -> Text:
    """One line of pieces and lines."""
    pieces: list[Piece] = []
    for each in lines:
        if isinstance(each, Text):
            pieces += each.pieces
        elif each[0]:
            pieces.append(each)
    return Text.of(pieces)
