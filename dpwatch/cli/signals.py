"""SIGTERM and SIGHUP: the command cleans up, then exits with 128 + the signal's number."""

from __future__ import annotations

import signal
import sys
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_cleanly() -> None:
    """Makes SIGTERM and SIGHUP unwind the main thread, so that `finally` blocks run."""
    for signum in ENDING:
        signal.signal(signum, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    sys.exit(128 + signum)
