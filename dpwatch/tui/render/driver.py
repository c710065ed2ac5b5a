"""A terminal that may be gone: its window closed, its connection lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import IO, Any

from textual.driver import Driver


class Lasting:
    """A file for the thread that writes the screen; writing to a lost terminal does nothing.

    Textual's writer would end at the error and leave its bounded queue to fill up, and the app,
    told by SIGHUP to close, would wait for room in it for ever.
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

    Textual goes by COLUMNS and LINES where they are exported, and then sees no change of size.
    """
    try:
        return os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return shutil.get_terminal_size()


def lasting(driver: type[Driver]) -> type[Driver]:
    """The driver, writing to a `Lasting` file where it writes to a file of its own."""

    class LastingDriver(driver):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if (file := getattr(self, "_file", None)) is not None:
                self._file = Lasting(file)

        def _get_terminal_size(self) -> tuple[int, int]:
            return terminal_size()

    return LastingDriver
