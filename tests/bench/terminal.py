"""The real dashboard on a pseudo terminal of this process: what it writes, and what it costs."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress

from rich.cells import cell_len

TOKEN = re.compile(
    r"\x1b\[([0-?]*)[ -/]*([@-~])|\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)|[=>@-Z^_])|(\n)|([^\x1b])"
)
"""Parameters and letter of a control sequence; another escape; a line's end; a character."""
PATIENCE_S = 120.0


class Screen:
    """As much of a terminal as the dashboard uses: the cursor's place, styles, and cells.

    A cell is its characters and its style's numbers; "" is the second half of a wide one.
    """

    def __init__(self, width: int, height: int) -> None:
        self.cells = [[(" ", "")] * width for _ in range(height)]
        self._at = (0, 0)
        self._style = ""
        self._rest = ""

    def write(self, text: str) -> None:
        """Draws; a sequence that is cut off waits for its end."""
        text = self._rest + text
        end = text.rfind("\x1b", len(text) - 64) if "\x1b" in text[-64:] else -1
        self._rest = text[end:] if end >= 0 and not TOKEN.match(text, end) else ""
        for numbers, command, newline, char in TOKEN.findall(text[: len(text) - len(self._rest)]):
            if command == "H":
                y, x = (int(each) - 1 for each in numbers.split(";"))
                self._at = (x, y)
            elif command == "m":
                self._style = numbers.removeprefix("0;") if numbers != "0" else ""
            elif newline:
                self._at = (0, self._at[1] + 1)
            elif char >= " ":
                self._draw(char)

    def _draw(self, char: str) -> None:
        x, y = self._at
        width = cell_len(char)
        if x + width > len(self.cells[0]):  # no update does that, but a traceback may
            x, y = 0, y + 1
        line = self.cells[min(y, len(self.cells) - 1)]
        if not width:
            at = x - 1 if line[x - 1][0] else x - 2
            line[at] = (line[at][0] + char, line[at][1])
            return
        for at in range(x, x + width):
            if not line[at][0]:  # half a wide character is a blank
                line[at - 1] = (" ", line[at - 1][1])
            if at + 1 < len(line) and not line[at + 1][0]:
                line[at + 1] = (" ", line[at + 1][1])
            line[at] = (" ", "")
        line[x : x + width] = [(char, self._style), ("", self._style)][:width]
        self._at = (x + width, y)

    @property
    def text(self) -> str:
        """What stands there."""
        return "\n".join("".join(char for char, _ in line) for line in self.cells)


class Dashboard:
    """A Python module (`dpwatch`) in a terminal of that size. A context manager."""

    def __init__(
        self, width: int, height: int, environment: Mapping[str, str], *words: str
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *(words or ("dpwatch",))],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        os.close(slave)
        self.written = 0
        self._screen = Screen(width, height)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *error: object) -> None:
        self.press("q")
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            self.read(0.1)
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read(self, timeout_s: float) -> bytes:
        """What is written within that time, b"" where that is nothing."""
        ready, _, _ = select.select([self._master], [], [], max(timeout_s, 0))
        if not ready:
            return b""
        try:
            found = os.read(self._master, 1 << 16)
        except OSError:  # the other end is closed
            return b""
        self.written += len(found)
        self._screen.write(self._decode(found))
        return found

    def follow(self, seconds: float) -> None:
        """Takes in what is written for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.read(left)

    def press(self, key: str) -> None:
        """Types a key."""
        os.write(self._master, key.encode())

    def until(self, text: str) -> float:
        """Seconds from now until the text stands on the screen.

        Raises:
            TimeoutError: It never does.
        """
        began = time.monotonic()
        while time.monotonic() < began + PATIENCE_S and self._process.poll() is None:
            self.read(1.0)
            if text in self._screen.text:
                return time.monotonic() - began
        raise TimeoutError(f"{text!r} never came; there is\n{self._screen.text}")

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return self._screen.text

    @property
    def cpu_s(self) -> float:
        """CPU time of its process so far."""
        return cpu_s(self._process.pid)

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        return rss_bytes(self._process.pid)


def cpu_s(pid: int) -> float:
    """CPU time that a process's threads have had so far, to the nanosecond."""
    total_ns = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            total_ns += int(file.read().split()[0])
    return total_ns / 1e9


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
