"""Turns what is written to a stream into lines to send: complete, clean, and limited in number."""

from __future__ import annotations

import re
import unicodedata
from collections import deque

from dpwatch.wire.messages import Line, Output

MOST_CHARS = 400
"""Characters sent of a line."""

KEPT_CHARS = 4 * MOST_CHARS
"""Characters kept of a line in progress, including escape sequences."""

RATE = 50
"""Lines per second that a stream may send continuously …"""
BURST = 200
"""… and how many at once. Beyond that, the last ones are sent."""

OPEN_NS = 500_000_000
"""Interval at which an unfinished line is sent."""

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]?"  # control sequences, such as colours
    r"|\x9b[0-?]*[ -/]*[@-~]?"
    # titles, links
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def cleaned(text: str) -> str:
    """The text as a terminal would show it, without colours; at most `MOST_CHARS` long."""
    if "\x1b" in text or not text.isascii():
        text = _ESCAPES.sub("", text)
    if "\b" in text:
        text = _rubbed_out(text)
    if not text.isprintable():
        text = "".join(map(_printable, text.expandtabs(4)))
    text = text.rstrip()
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…"


def _printable(char: str) -> str:
    """A character that can be sent and shown: no surrogates, no control characters."""
    category = unicodedata.category(char)
    if category == "Cc":
        return ""
    return "\ufffd" if category == "Cs" else char


def _rubbed_out(text: str) -> str:
    """Applies backspaces, as old progress bars use them."""
    kept: list[str] = []
    for char in text:
        if char != "\b":
            kept.append(char)
        elif kept:
            kept.pop()
    return "".join(kept)


class Lines:
    """The lines of one stream, assembled from its writes.

    Attributes:
        left_out: Lines dropped since the last `drain`.
    """

    def __init__(self, stream: str) -> None:
        self.left_out = 0
        self._stream = stream
        self._whole: deque[tuple[int, str]] = deque(maxlen=BURST)
        self._part = ""
        self._part_ns = 0
        self._returned = False
        self._told_part = ""
        self._told_ns = 0
        self._credit = float(BURST)
        self._credit_ns: int | None = None

    def feed(self, text: str, wall_ns: int, cut: int = 0) -> None:
        """Takes what was written; `cut` lines before it were lost."""
        self.left_out += cut
        *ended, rest = text.split("\n")
        for piece in ended:
            self._add(piece)
            if len(self._whole) == BURST:
                self.left_out += 1
            self._whole.append((wall_ns, self._part))
            self._part, self._returned = "", False
        if rest:
            self._add(rest)
            self._part_ns = wall_ns

    def _add(self, piece: str) -> None:
        """Continues the line; after a carriage return it is overwritten."""
        if self._returned and piece.strip("\r"):
            self._part, self._returned = "", False
        if "\r" in piece:
            states = [state for state in piece.split("\r") if state]
            if not states:
                self._returned = True
                return
            if len(states) > 1 or piece[0] == "\r":
                self._part = ""
            self._returned = piece[-1] == "\r"
            piece = states[-1]
        self._part += piece[: KEPT_CHARS - len(self._part)]

    def drain(self, now_ns: int, *, last: bool = False) -> Output | None:
        """What is to be sent now, None if there is nothing.

        Args:
            now_ns: Wall clock.
            last: Nothing more will come: everything is sent, regardless of the rate.
        """
        if self._credit_ns is not None:
            self._credit += RATE * max(now_ns - self._credit_ns, 0) / 1e9
        self._credit = min(self._credit, BURST)
        self._credit_ns = now_ns
        told = BURST if last else min(int(self._credit), BURST)
        while len(self._whole) > told:
            self._whole.popleft()
            self.left_out += 1
        lines = [Line(wall_ns, cleaned(text)) for wall_ns, text in self._whole]
        self._whole.clear()
        self._credit -= len(lines)
        part = cleaned(self._part)
        grown = part != self._told_part and (last or now_ns - self._told_ns >= OPEN_NS)
        # A line that has ended was sent completely, so nothing of it stays open.
        if not (lines or self.left_out or grown or (self._told_part and not part)):
            return None
        if lines or grown or not part:
            self._told_part, self._told_ns = part, now_ns
        still_open = Line(self._part_ns, self._told_part) if self._told_part else None
        left_out, self.left_out = self.left_out, 0
        return Output(self._stream, lines, left_out, still_open)
