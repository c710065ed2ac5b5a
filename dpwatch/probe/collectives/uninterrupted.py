"""Functions that C++ calls, and through which no exception of a signal handler may propagate.

Python runs signal handlers between any two instructions on the main thread. When torch's C++ calls
the probe (DDP's reducer issuing a collective, say), that happens in the middle of C++ code which
runs no Python of its own. An exception that a handler raises there would break its state: DDP would
miss a bucket for good. So such an exception is held back and raised where it would have been
without the probe: at the first Python instruction after the C++ code has returned.

That works for a function if

- its entry does not check for signals (`uninterrupted`),
- everything that makes calls is inside a `try`, and
- what C++ wants is called by unpacking an iterator, `(result,) = starmap(function, [arguments])`,
  around which Python does not check for signals, so that a result is never lost.
"""

from __future__ import annotations

import ctypes
import dis
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, TypeVar

from dpwatch.probe.foreign import is_foreign, is_ours


class _Here(threading.local):
    """Id and class of the exception that this thread was given last."""

    held: tuple[int, type[BaseException]] | None = None


_here = _Here()
_Function = TypeVar("_Function", bound=Callable[..., Any])

_RESUME: int | None = dis.opmap.get("RESUME") if sys.version_info < (3, 15) else None
"""None also on versions where the meaning of its argument has not been verified."""

_AFTER_YIELD_FROM = 2
"""The argument of RESUME with which an entry does not check for signals: as after `yield from`."""


def uninterrupted(function: _Function) -> _Function:
    """Lets no signal handler run at a function's entry. Its first statement must be a `try`.

    Since Python 3.11 the instruction RESUME checks for signals. Before that, an entry followed by a
    `try` did not.
    """
    code = function.__code__
    instructions = bytearray(code.co_code)
    for at in range(0, len(instructions), 2):
        if instructions[at] == _RESUME:
            instructions[at + 1] |= _AFTER_YIELD_FROM
            function.__code__ = code.replace(co_code=bytes(instructions))
            break
    return function


def raise_on_return(error: BaseException) -> Iterator[Any]:
    """Raises an exception in this thread once C++ has returned: unpack the result and return.

        (_,) = raise_on_return(error)
        return result

    Built entirely from C functions, so that no signal is checked in between. The traceback starts
    where the exception is raised; since Python 3.12 it continues to the handler's frame, as it
    should.
    """
    error.__traceback__ = _without_ours(error.__traceback__)
    kind = type(error)
    _here.held = id(error), kind
    # Raising a class calls it to create the exception; here that call returns the error itself.
    make = staticmethod(partial(next, repeat(error)))
    stand_in = type(kind.__name__, (kind,), {"__new__": make, "__module__": kind.__module__})
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    thread = ctypes.c_ulong(threading.get_ident())
    return map(raise_in, [thread], [ctypes.py_object(stand_in)])


def script_exception(error: BaseException) -> BaseException | None:
    """The exception if it is the script's, None if it is the probe's own.

    It may have been held back before, and have been raised again on its way to the script.
    """
    was_held = _here.held == (id(error), type(error))
    return error if was_held or is_foreign(error) else None


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the probe's own frames, which it passed through by chance."""
    while trace is not None and is_ours(trace.tb_frame.f_code):
        trace = trace.tb_next
    return trace
