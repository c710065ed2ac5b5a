"""A terminal that may go away: its window is closed, its connection is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import IO

from textual.driver import Driver

from dpwatch.tui.render.private_api import driver_with


class Lasting:
    """A file for the thread that writes the screen; ignores errors of a lost terminal.

    Otherwise Textual's writer thread ends at the error, its bounded queue fills up, and the app,
    closing on SIGHUP, waits for room in it forever.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Writes, if the terminal is there."""
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        """Flushes, if the terminal is there."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()


def terminal_size() -> tuple[int, int]:
    """Columns and lines of the terminal itself.

    Textual trusts COLUMNS and LINES if they are exported, and then misses every resize.
    """
    try:
        return os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return shutil.get_terminal_size()


def lasting(driver: type[Driver]) -> type[Driver]:
    """The driver, writing to a `Lasting` file where it writes to a file of its own."""
    return driver_with(driver, Lasting, terminal_size)
