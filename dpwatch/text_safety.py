"""Text from ranks and other hosts, made safe for a terminal, an environment, a JSON file.

The dashboard has a cleaner of its own (`tui.draw.text`), since it draws cells.
"""

from __future__ import annotations


def printable(line: str) -> str:
    """The line without control, format and unassigned characters: none reaches a terminal.

    Escape sequences, line breaks and marks that reorder text are among them; each becomes `�`.
    """
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def escaped(json: str) -> str:
    """JSON that is the same to a program, and harmless to a terminal that it is printed to.

    JSON itself escapes control characters below 32 only, and a terminal obeys some above 127.
    """
    if json.isascii() and "\x7f" not in json:
        return json
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in json)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
