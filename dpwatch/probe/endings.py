"""How a process ends, and what is said of it: uncaught exceptions, exits, forks."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from multiprocessing import util
from types import TracebackType

_prepared_in = 0


def describe(error: BaseException) -> str:
    """An exception in one line, as `Bye.reason`."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted (KeyboardInterrupt)"
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str, limit: int = 300) -> str:
    """Text without line breaks, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class Uncaught:
    """Hears of an exception that nobody caught, before the interpreter prints it."""

    def __init__(self, tell: Callable[[BaseException], None]) -> None:
        self._tell = tell
        self._previous = sys.excepthook
        self._ours = self._hear  # one object, to be known again
        sys.excepthook = self._ours

    def _hear(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        try:
            self._tell(error)
        finally:
            self._previous(kind, error, trace)

    def close(self) -> None:
        """Puts the previous hook back, unless somebody has put theirs on top."""
        if sys.excepthook is self._ours:
            sys.excepthook = self._previous


def prepare(at_exit: Callable[[BaseException | None], None], in_child: Callable[[], None]) -> None:
    """Calls back when this process ends, with what it fails of if that is known, or forks.

    Once a process is enough; further calls do nothing.
    """
    global _prepared_in
    if _prepared_in == os.getpid():
        return

    def leave() -> None:
        at_exit(_in_flight())

    # Children of multiprocessing leave by os._exit, past atexit, but run finalizers.
    util.Finalize(None, leave, exitpriority=0)
    if not _prepared_in:  # these two, a forked child has inherited
        atexit.register(leave)
        os.register_at_fork(after_in_child=in_child)
    _prepared_in = os.getpid()


def _in_flight() -> BaseException | None:
    """The exception on its way out of a multiprocessing child, whose finalizers run under it."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        # torch's launcher reports an error to the parent and then exits with a code.
        return error.__context__ or error if error.code else None
    return error
