"""Text that is compared: what differs between any two processes is taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_LOG_TIME = re.compile(r"\b([DIWEF])\d{4} \d\d:\d\d:\d\d\.\d+( \d+)?")
_FRAME = re.compile(r'(?P<margin>.*?) {2}File "(?P<file>[^"]+)", line \d+, in (?P<name>\S+)')


def without_addresses(text: str) -> str:
    """Text without memory addresses, and without times and process ids of torch's own log."""
    return _LOG_TIME.sub(r"\1…", _ADDRESS.sub("0x…", text))


REPLACED = ("_wrapped_call_impl", "_engine_run_backward")
"""Torch's functions that the probe's do the work of."""


def without_own_frames(lines: Iterable[str]) -> list[str]:
    """Lines of which tracebacks are without the probe's frames, and torch's that they stand for.

    The row `zoo/traceback_frames` shows these.
    """
    kept, margin = [], None
    for line in lines:
        if (frame := _FRAME.match(line)) is not None:
            ours = "/dpwatch/" in frame["file"] or frame["name"] in REPLACED
            margin = f"{frame['margin']}    " if ours else None
        elif margin is not None and not line.startswith(margin):
            margin = None
        if margin is None:
            kept.append(line)
    return kept
