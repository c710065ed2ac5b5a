"""Exit codes, and the error that carries one."""

from __future__ import annotations

FINE = 0
USAGE = 2
NOTHING_TO_SHOW = 3


class CommandError(Exception):
    """An error the user can fix: one line that says how, and an exit code."""

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code
