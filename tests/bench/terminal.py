"""The real dashboard on a pseudo terminal of this process: what it writes, and what it costs."""

from __future__ import annotations

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

ESCAPE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_=>])")
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 120.0


class Dashboard:
    """`dpwatch` in a terminal of that size. A context manager."""

    def __init__(self, width: int, height: int, environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpwatch"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        os.close(slave)
        self.written = 0
        self._tail = b""

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
        """Seconds from now until the text is written, escape sequences left out of it.

        Raises:
            TimeoutError: It never was.
        """
        began, seen = time.monotonic(), b""
        while time.monotonic() < began + PATIENCE_S and self._process.poll() is None:
            seen += self.read(1.0)
            if text.encode() in ESCAPE.sub(b"", seen):
                return time.monotonic() - began
        raise TimeoutError(f"{text!r} never came; the last was {ESCAPE.sub(b'', seen)[-300:]!r}")

    @property
    def cpu_s(self) -> float:
        """CPU time of its process so far."""
        return cpu_s(self._process.pid)

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        return rss_bytes(self._process.pid)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, all threads together."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
