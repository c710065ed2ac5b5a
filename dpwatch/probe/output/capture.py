"""Captures this process's writes to stdout and stderr as they happen.

The stream objects stay the same. Each gets an instance attribute `write` that shadows its class's:
it writes as before and then appends to a bounded queue. Nothing else happens on the thread that
prints. Writes to the file descriptors that bypass Python are not captured.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable
from time import time_ns
from typing import Any

from dpwatch.probe.foreign import own_fault, suppress_own
from dpwatch.probe.output.lines import Lines
from dpwatch.wire.messages import Output

STREAMS = ("out", "err")
MOST_WRITES = 1024
"""Writes kept until the sender drains them; older ones are dropped."""

MOST_CHARS = 8192
"""Characters kept of a single write: its end."""

Written = tuple[int, str, int, int]
"""Index into `STREAMS`, text, wall clock in ns, lines that the stream ended before the text."""


def wanted() -> bool:
    """Whether to capture this process's output: `DPWATCH_OUTPUT`, else under `dpwatch run`."""
    said = os.environ.get("DPWATCH_OUTPUT")
    return said != "0" if said else "DPWATCH_SESSION" in os.environ


def _ignore(error: BaseException) -> None:
    """A line that cannot be kept is dropped; nothing else is wrong."""


class Tap:
    """Captures what is written to the current `sys.stdout` and `sys.stderr`, until `close`."""

    def __init__(self) -> None:
        self._written: deque[Written] = deque(maxlen=MOST_WRITES)
        self._ended = [0, 0]  # lines written so far; used by writers only
        self._fed = [0, 0]  # lines drained so far; used by the sender only
        self._lines = [Lines(name) for name in STREAMS]
        self._patched: list[tuple[Any, Callable[..., Any], Callable[..., Any] | None]] = []
        streams = [sys.stdout] if sys.stdout is sys.stderr else [sys.stdout, sys.stderr]
        for index, stream in enumerate(streams):
            with suppress_own(Exception):  # a custom stream of the script may raise anything
                self._patch(index, stream)

    def _patch(self, index: int, stream: Any) -> None:
        before = vars(stream).get("write")
        ours = self._writer(index, stream.write)
        stream.write = ours
        self._patched.append((stream, ours, before))

    def _writer(self, index: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        keep = self._keep

        def write(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            try:
                text = args[0]
                if type(text) is str:
                    keep(index, text)
            except Exception as error:  # noqa: BLE001 - never into the user's code
                own_fault(error, _ignore)
            return result

        with suppress_own(Exception):  # the script may inspect its name and signature
            functools.update_wrapper(write, plain)
            write.__self__ = plain.__self__  # type: ignore[attr-defined]  # as a method has it
        return write

    def _keep(self, index: int, text: str) -> None:
        before = self._ended[index]
        self._ended[index] = before + text.count("\n")
        if len(text) > MOST_CHARS:
            before += text.count("\n", 0, -MOST_CHARS)
            text = text[-MOST_CHARS:]
        self._written.append((index, text, time_ns(), before))

    def record_exception(self, error: BaseException) -> None:
        """Adds what Python is about to print of the exception that ends the process.

        It cannot be captured when printed: the probe says goodbye before.
        """
        with suppress_own(Exception):  # an exception's own text may raise
            if isinstance(error, SystemExit):
                text = f"{error.code}\n" if isinstance(error.code, str) else ""
            else:
                text = "".join(traceback.format_exception(error))
            self._keep(STREAMS.index("err"), text)

    def drain(self, *, last: bool = False) -> list[Output]:
        """What was written since the last call; on the sender thread only.

        Args:
            last: Nothing more will come: an unfinished line is returned as it is.
        """
        now_ns = time_ns()
        for _ in range(len(self._written)):
            index, text, wall_ns, before = self._written.popleft()
            # Dropped writes are missing; two threads that print at once may miscount.
            self._lines[index].feed(text, wall_ns, max(before - self._fed[index], 0))
            self._fed[index] = before + text.count("\n")
        if last:  # writes dropped in favour of the other stream count too
            for index, lines in enumerate(self._lines):
                lines.left_out += max(self._ended[index] - self._fed[index], 0)
        told = (lines.drain(now_ns, last=last) for lines in self._lines)
        return [output for output in told if output is not None]

    def close(self) -> None:
        """Removes our `write`, unless somebody has patched over it."""
        placed, self._patched = self._patched, []
        for stream, ours, before in placed:
            with suppress_own(Exception):
                if vars(stream).get("write") is not ours:
                    continue
                if before is None:
                    del stream.write
                else:
                    stream.write = before
