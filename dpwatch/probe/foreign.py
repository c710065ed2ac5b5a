"""Decides whose an exception is. The script's pass through the probe's own code unchanged.

The probe catches whatever goes wrong in itself. But Python runs signal handlers between any two
instructions, including the probe's, and an exception that a handler raises (a time limit, say) is
meant for the script. So is one raised into a thread from outside (`PyThreadState_SetAsyncExc`).
Every `except Exception` around the probe's work on one of the script's threads therefore starts
with

    except Exception as error:
        if is_foreign(error):
            raise
        ...

or is a `with suppress_own(...)`.
"""

from __future__ import annotations

import os
import signal
import sysconfig
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_TORCH_PART = f"{os.sep}torch{os.sep}"

_KNOWN_MAKERS = frozenset({"builtins", "dpwatch", "msgspec", "torch", "zmq"})
"""Packages whose exceptions the probe's own code, or what it calls, may raise."""


def is_foreign(error: BaseException) -> bool:
    """Whether an exception caught inside the probe's code is meant for the script.

    Three kinds are: those that are not an `Exception` (KeyboardInterrupt, SystemExit), those raised
    by a signal handler, and those raised into the thread from outside. Code of the script's that
    the probe itself calls (an overridden `parameters()`, say) may raise too: that is none of the
    three.

    Args:
        error: The exception as caught, with its traceback.
    """
    if not isinstance(error, Exception):
        return True
    trace, caller = error.__traceback__, None
    calls_script = False
    while trace is not None:
        frame = trace.tb_frame
        if caller is not None and not is_ours(frame.f_code):
            if _handles_signal(frame, caller):
                return True
            calls_script = calls_script or not _is_library(frame.f_code)
        trace, caller = trace.tb_next, frame
    return not calls_script and _comes_from_outside(error)


def own_fault(error: Exception, fail: Callable[[BaseException], None]) -> None:
    """Passes a fault of the probe's own to `fail`; re-raises what is the script's.

    Must be called where the exception was caught.
    """
    if is_foreign(error):
        raise error
    fail(error)


class suppress_own:
    """Like `contextlib.suppress`, but lets the script's exceptions through.

    A time limit is often an `OSError`: `TimeoutError` is one.
    """

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, self._kinds) and not is_foreign(error)


def _handles_signal(frame: FrameType, caller: FrameType) -> bool:
    """Whether the frame is a signal handler's: only those are passed the frame they interrupt."""
    code = frame.f_code
    count = code.co_argcount + bool(code.co_flags & 0x04)  # with *args, which follow keyword-only
    names = code.co_varnames
    variable = names[code.co_argcount + code.co_kwonlyargcount] if count > code.co_argcount else ""
    values = frame.f_locals
    for name in (*names[: code.co_argcount], variable):
        value = values.get(name)
        if value is caller or (type(value) is tuple and any(each is caller for each in value)):
            return True
    return code in _handlers()


def _handlers() -> set[CodeType]:
    """Code of the installed handlers: one may have dropped the frame it was given."""
    found = set()
    for number in signal.valid_signals():
        code = _code_of(signal.getsignal(number))
        if code is not None:
            found.add(code)
    return found


def _code_of(handler: Any) -> CodeType | None:
    handler = getattr(handler, "func", handler)  # a partial's
    handler = getattr(handler, "__func__", handler)  # a method's
    code = getattr(handler, "__code__", None)
    if code is None and callable(handler):
        code = getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _comes_from_outside(error: Exception) -> bool:
    """Whether nothing that the probe does could have raised it."""
    maker = type(error).__module__.partition(".")[0]
    return maker not in _KNOWN_MAKERS or isinstance(error, TimeoutError)


def is_ours(code: CodeType) -> bool:
    """Whether code belongs to the probe."""
    return code.co_filename.startswith(_OURS)


def _is_library(code: CodeType) -> bool:
    path = code.co_filename
    return _TORCH_PART in path or (path.startswith(_STDLIB) and "site-packages" not in path)
