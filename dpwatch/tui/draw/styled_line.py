"""Lines as the pieces they are made of: a `rich.text.Text` that costs little to lay into others."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

from rich.style import Style
from rich.text import Span, Text

Piece = tuple[str, Style]


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
