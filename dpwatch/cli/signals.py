"""Signals that end a command: it cleans up after itself, then ends as if by that signal."""

from __future__ import annotations

import signal
import sys
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_cleanly() -> None:
    """From here on SIGTERM and SIGHUP unwind the main thread, so that `finally` blocks run."""
    for signum in ENDING:
        signal.signal(signum, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not cut the cleaning short
    sys.exit(128 + signum)
