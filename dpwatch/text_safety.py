"""Text from ranks and other hosts, made safe for a terminal, an environment variable or JSON."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me"})


def printable(line: str) -> str:
    """The line with `�` in place of every control, format and unassigned character.

    These include escape sequences, line breaks and marks that reorder text.
    """
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def clean(text: str, limit: int = 400) -> str:
    """One line of at most `limit` characters, for the cells of a screen.

    Drops what `visible` drops and collapses whitespace.
    """
    kept = " ".join(visible(text[: limit * 4]).split())
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def visible(text: str) -> str:
    """The text without control, format, surrogate and combining characters; blanks are kept.

    Escape sequences can't reach the terminal, right-to-left overrides can't reorder what is shown,
    and every remaining character takes cells of its own.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if char in "\n\r\t\v\f" else char
        for char in text
        if char in "\n\r\t\v\f" or unicodedata.category(char) not in _HIDDEN
    )


def escaped(json: str) -> str:
    """The same JSON, with every character escaped that a terminal might obey.

    JSON itself only requires escapes below 32; terminals also obey some characters above 127.
    """
    if json.isascii() and "\x7f" not in json:
        return json
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in json)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
