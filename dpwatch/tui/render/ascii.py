"""The dashboard's glyphs in ASCII, cell by cell, for terminals and fonts without others."""

from __future__ import annotations

import sys

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter
from textual.scrollbar import ScrollBarRender

_PAIRS = (
    ("▁▂▃▄▅▆▇█▔", ".:-=+*%#-"),
    ("▏▎▍▌▋▊▉▐", "|       "),
    ("▸▶→◀←▲↑▼↓↔↕", ">>><<^^vv-|"),
    ("●○✓✗‖·–—…⋯", "*o+x=.--~~"),
    ("╭╮╰╯┌┐└┘├┤┬┴┼─│╱╲", "+++++++++++++-|/\\"),
    ("×≤≥≈µ°²“”‘’▒", "x<>~uo2\"\"''%"),
)
_TABLE = {ord(a): b for some, others in _PAIRS for a, b in zip(some, others, strict=True)}
_BRAILLE, _DOTS = 0x2800, " .....:::"
_TABLE |= {_BRAILLE + bits: _DOTS[bits.bit_count()] for bits in range(256)}
_KEYS = {"⏎": "enter", "←": "left", "→": "right", "↑": "up", "↓": "down", "␣": "space"}


class _Rest(dict[int, str]):
    """The table; anything else that is not ASCII becomes `?`."""

    def __missing__(self, code: int) -> str:
        found = chr(code) if code < 128 else "?"
        if sys.getsizeof(self) < 1 << 20:  # text from outside must not make it grow forever
            self[code] = found
        return found


_REST = _Rest(_TABLE)


def to_ascii(text: str) -> str:
    """The text in ASCII, with the same number of characters."""
    return text if text.isascii() else text.translate(_REST)


def key_to_ascii(text: str) -> str:
    """A key's name; arrows are spelled out."""
    return to_ascii("".join(_KEYS.get(char, char) for char in text))


class PlainFilter(LineFilter):
    """Writes Textual's own widgets in ASCII too: the command palette, notifications."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments, each as wide as before."""
        return [Segment(_as_wide(text), style, control) for text, style, control in segments]


def _as_wide(text: str) -> str:
    if text.isascii():
        return text
    return "".join(to_ascii(char).ljust(cell_len(char))[: cell_len(char)] for char in text)


class PlainScrollBar(ScrollBarRender):
    """A scroll bar without block characters: its ends lie on whole cells."""

    VERTICAL_BARS = [" "] * 8
    HORIZONTAL_BARS = [" "] * 8
