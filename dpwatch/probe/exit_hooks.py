"""How a process ends: uncaught exceptions, exits, forks.

Nothing of the script's is replaced for this. Python itself stores the exception that ends the main
script (`sys.last_exc`), whatever `sys.excepthook` is set, so it is read there.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import util

from dpwatch.probe.foreign import is_foreign
from dpwatch.wire.messages import INTERRUPTED

TITLE_CHARS = 300
REASON_CHARS = 1900
"""Limit of an error's text; DDP's list of unused parameters and most of a CUDA error fit."""

_leave: Callable[[], None] | None = None
_finalizer: util.Finalize | None = None


def describe(error: BaseException) -> str:
    """An exception in one line, for `Bye.reason`. Never raises, even if its `__str__` does."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return _describe_exit(error)
    return one_line(_spelled(error), REASON_CHARS)


def _describe_exit(error: SystemExit) -> str:
    code = 0 if error.code is None else error.code
    cause = error.__context__
    while isinstance(cause, SystemExit):
        cause = cause.__context__
    why = "" if cause is None else f": {_spelled(cause)}"
    if isinstance(code, int):
        return one_line(f"exit code {code}{why}", REASON_CHARS)
    return one_line(_text(code) or "exit code 1", REASON_CHARS)


def _spelled(error: BaseException) -> str:
    name, text = type(error).__name__, _text(error)
    return f"{name}: {text}" if text else name


def _text(thing: object) -> str:
    try:
        return str(thing)
    except Exception as error:
        if is_foreign(error):
            raise
        return f"(no text: its __str__ raises {type(error).__name__})"


def one_line(text: str, limit: int = TITLE_CHARS) -> str:
    """Text without line breaks; if too long, its middle is omitted."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    head = limit * 2 // 3
    return f"{line[:head]} … {line[head + 3 - limit :]}"


def failed(error: BaseException | None) -> bool:
    """Whether an exception that leaves a block or a process is a failure: `sys.exit(0)` is not."""
    if isinstance(error, SystemExit):
        return error.code is not None and error.code != 0
    return error is not None


def uncaught() -> BaseException | None:
    """The exception that ended the main script, None if none did.

    Python stores it for debuggers, but also stores exceptions at an interactive prompt, which did
    not end anything, and those that C code printed for a callback. So only one that left the main
    module counts.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if not isinstance(error, BaseException) or _is_interactive():
        return None
    trace = error.__traceback__
    if trace is None:
        return None
    frame = trace.tb_frame
    main = sys.modules.get("__main__")
    is_script = frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)
    return error if is_script or frame.f_code.co_name == "_run_module_as_main" else None


def _is_interactive() -> bool:
    asked = sys.flags.interactive or sys.flags.inspect or os.environ.get("PYTHONINSPECT")
    return bool(asked) or hasattr(sys, "ps1")


def prepare(at_exit: Callable[[BaseException | None], None], in_child: Callable[[], None]) -> None:
    """Registers callbacks for the end of this process (with its exception, if known) and for forks.

    Once per process is enough; further calls do nothing.
    """
    global _leave
    if _leave is None:  # a forked child inherits these two

        def leave() -> None:
            at_exit(in_flight() or uncaught())

        _leave = leave
        atexit.register(leave)
        os.register_at_fork(after_in_child=in_child)
    if multiprocessing.parent_process() is not None:
        _finalize(_leave)


def _finalize(leave: Callable[[], None]) -> None:
    """Handles children of multiprocessing, which run finalizers but bypass atexit by os._exit.

    They forget those that were registered by their parent, or by their main module while it was
    imported.
    """
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        _finalizer = util.Finalize(None, leave, exitpriority=0)


def in_flight() -> BaseException | None:
    """The exception leaving a multiprocessing child, whose finalizers run while it propagates."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        # torch's launcher reports an error to the parent and then exits with a code.
        return error.__context__ or error if failed(error) else None
    return error
