"""Lines of styled text, and the cleaning of text that came from outside.

A line is a `rich.text.Text`: built span by span, never parsed as markup. Whatever a training
process named itself (titles, hosts, reasons, devices) passes `clean` first.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

from rich.cells import cell_len, set_cell_size
from rich.control import strip_control_codes
from rich.style import Style
from rich.text import Span, Text

Piece = tuple[str, Style]
Part = Piece | Text


def clean(text: str, limit: int = 400) -> str:
    """One line without control, format and surrogate characters, at most `limit` long.

    Escapes can't reach the terminal, and right-to-left overrides can't reorder what is shown.
    """
    kept = " ".join(visible(text[: limit * 4]).split())
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def visible(text: str) -> str:
    """The text on one line without what `clean` takes out, its blanks as they are."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if char in "\n\r\t\v\f" else char
        for char in text
        if char in "\n\r\t\v\f" or unicodedata.category(char) not in _HIDDEN
    )


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me"})


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


class Pieced(Text):
    """A line as the pieces it was put together from.

    Rich keeps a text and spans over it. To lay lines into lines, which is most of what drawing a
    dashboard is, each span has to be moved then. Pieces only follow each other. Spans are made of
    them as soon as one of Rich's own methods wants them, and from then on it is a `Text`.
    """

    __slots__ = ("_pieces",)

    def __init__(self, pieces: tuple[Piece, ...], plain: str) -> None:
        # Not the base's own, which looks at every character.
        self.style, self.justify, self.overflow = "", None, None
        self.no_wrap, self.end, self.tab_size = True, "", None
        self._length = len(plain)
        _TEXT.__set__(self, [plain])
        self._pieces: tuple[Piece, ...] | None = pieces

    @property
    def pieces(self) -> tuple[Piece, ...] | None:
        """What it is made of, None once something else has been made of it."""
        return None if self.style else self._pieces

    def _settled(self) -> None:
        if self._pieces is not None:
            _SPANS.__set__(self, _spans_of(self._pieces))
            self._pieces = None

    @property
    def plain(self) -> str:
        """See `Text`."""
        if self._pieces is None:
            return cast("str", _PLAIN.__get__(self))
        return cast("list[str]", _TEXT.__get__(self))[0]

    @plain.setter
    def plain(self, text: str) -> None:
        _PLAIN.__set__(self, text)

    @property
    def _text(self) -> list[str]:
        self._settled()
        return cast("list[str]", _TEXT.__get__(self))

    @_text.setter
    def _text(self, text: list[str]) -> None:
        self._settled()
        _TEXT.__set__(self, text)

    @property
    def _spans(self) -> list[Span]:
        self._settled()
        return cast("list[Span]", _SPANS.__get__(self))

    @_spans.setter
    def _spans(self, spans: list[Span]) -> None:
        self._settled()
        _SPANS.__set__(self, spans)

    def copy(self) -> Text:
        """See `Text`; this one stays what it is."""
        if self._pieces is None:
            return super().copy()
        made = Pieced(self._pieces, self.plain)
        made.style = self.style
        return made

    def __eq__(self, other: object) -> bool:
        mine = self.pieces
        its = other.pieces if isinstance(other, Pieced) else None
        if mine is not None and its is not None:
            return mine == its
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as the base


_TEXT: Any = vars(Text)["_text"]
_SPANS: Any = vars(Text)["_spans"]
_PLAIN: Any = vars(Text)["plain"]


def pieces_of(text: Text) -> tuple[Piece, ...]:
    """A text's pieces, each with all that styles it."""
    pieces = text.pieces if isinstance(text, Pieced) else None
    return _apart(text) if pieces is None else pieces


def _apart(text: Text) -> tuple[Piece, ...]:
    """The base style, and those of the spans over it, which as a rule don't overlap."""
    plain, spans, base = text.plain, text.spans, _style(text.style)
    pieces, at = [], 0
    for start, end, named in spans:
        if start < at:
            return _overlaid(text)
        if start > at:
            pieces.append((plain[at:start], base))
        pieces.append((plain[start:end], base + _style(named)))
        at = end
    if at < len(plain):
        pieces.append((plain[at:], base))
    return tuple(pieces)


def _overlaid(text: Text) -> tuple[Piece, ...]:
    plain, spans, base = text.plain, text.spans, _style(text.style)
    edges = sorted({0, len(plain), *(min(edge, len(plain)) for span in spans for edge in span[:2])})
    return tuple(
        (
            plain[start:end],
            sum((_style(named) for at, to, named in spans if at <= start < to), base),
        )
        for start, end in pairwise(edges)
    )


def _style(named: str | Style) -> Style:
    return named if isinstance(named, Style) else Style.parse(named)


def _spans_of(pieces: Iterable[Piece]) -> list[Span]:
    at, spans = 0, []
    for piece, style in pieces:
        if style:
            spans.append(Span(at, at + len(piece), style))
        at += len(piece)
    return spans


def line(*parts: Part) -> Text:
    """A line of (text, style) pairs and of lines.

    It is what `Text.append` would give part by part, at a fraction of the cost: a screen has some
    hundred of them, four times a second.
    """
    pieces: list[Piece] = []
    for part in parts:
        if not isinstance(part, Text):
            if part[0]:
                pieces.append(part)
        elif part:
            pieces += pieces_of(part)
    plain = "".join([piece for piece, _ in pieces])
    if not plain.isprintable() and plain != strip_control_codes(plain):
        pieces = [(strip_control_codes(piece), style) for piece, style in pieces]
        plain = "".join([piece for piece, _ in pieces])
    return Pieced(tuple(pieces), plain)


def fitted(text: Text, width: int) -> Text:
    """The line, cut with `…` or padded to exactly `width` cells."""
    if width <= 0:
        return Text(end="")
    found = text.cell_len
    if found > width:
        text = text.copy()
        text.truncate(width, overflow="ellipsis")
        found = text.cell_len
    return line(text, (" " * (width - found), _BARE))


_BARE = Style.null()


def wrapped(text: str, width: int, style: Style, indent: int = 0) -> list[Text]:
    """A paragraph broken at spaces, `indent` cells in from the left; words too long are cut."""
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
