"""Whether the dashboard can be drawn in this terminal."""

from __future__ import annotations

import codecs
import locale
import os
import sys
from collections.abc import Iterator, Mapping

from dpwatch.cli.checks.check import NOTE, OK, TROUBLE, Check

WIDTH, HEIGHT = 80, 24
"""The dashboard's minimum size; a test holds it equal to the dashboard's own."""

FEW_COLOURS = 256


def checks() -> Iterator[Check]:
    """The terminal's size and colours, and the locale."""
    yield terminal(_size(), os.environ)
    yield encoding(locale.getpreferredencoding(False))


def terminal(size: tuple[int, int] | None, environ: Mapping[str, str]) -> Check:
    """The terminal's type, colours and size.

    Args:
        size: Columns and lines; None if there is no terminal.
        environ: TERM, COLORTERM and NO_COLOR are read.
    """
    if size is None:
        text = "none: the dashboard needs one; --once and --headless do not"
        return Check("terminal", NOTE, text)
    columns, lines = size
    kind = environ.get("TERM", "")
    colours = colours_of(environ)
    shown = "colours unknown" if colours is None else f"{colours} colours"
    text = f"{kind or 'TERM is not set'}, {columns}x{lines}, {shown}"
    value = f"{columns}x{lines}"
    if columns < WIDTH or lines < HEIGHT:
        text += f": the dashboard needs {WIDTH}x{HEIGHT}"
        return Check("terminal", TROUBLE, text, "enlarge the window, or use a smaller font", value)
    if kind in ("", "dumb"):
        advice = "set TERM to the terminal's type, such as xterm-256color"
        return Check("terminal", NOTE, text, advice, value)
    if environ.get("NO_COLOR"):
        return Check("terminal", OK, f"{text}, not used because NO_COLOR is set", value=value)
    if colours is not None and colours < FEW_COLOURS:
        advice = "set TERM to xterm-256color if the terminal supports it"
        return Check("terminal", NOTE, f"{text}: categories will look alike", advice, value)
    return Check("terminal", OK, text, value=value)


def colours_of(environ: Mapping[str, str]) -> int | None:
    """How many colours the terminal has, None if unknown."""
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return 1 << 24
    try:
        import curses

        curses.setupterm(environ.get("TERM") or "dumb", 1)
        found = curses.tigetnum("colors")
    except Exception:  # noqa: BLE001 - no curses in this Python, or a TERM that nobody knows
        return None
    return max(found, 0)


def encoding(name: str) -> Check:
    """Whether the locale's encoding has block and line characters."""
    try:
        known = codecs.lookup(name).name
    except LookupError:
        known = name
    if known == "utf-8":
        return Check("locale", OK, "UTF-8", value="utf-8")
    text = f"{name}: blocks and lines cannot be drawn"
    return Check("locale", TROUBLE, text, "set LC_ALL=C.UTF-8, or another UTF-8 locale", known)


def _size() -> tuple[int, int] | None:
    """The size of the controlling terminal, even if stdout goes elsewhere."""
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        try:
            size = os.get_terminal_size(stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
        return size.columns, size.lines
    return None
