"""Keeps the probe out of torch.compile's way, without ever importing it.

Dynamo compiles any Python frame that it meets while it is on, including the probe's, so the probe's
functions that run then are marked to be skipped. Dynamo also remembers `Module.__call__` as of its
first import, and takes a shortcut if nobody has replaced it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

_REMEMBERS = ("torch._dynamo.utils", "torch._dynamo.variables.nn_module")
_AS = "unpatched_nn_module_call"


def rename(before: Any, ours: Any) -> list[tuple[Any, str, Any, Any]]:
    """If dynamo has been imported already, replaces the `Module.__call__` it remembers by ours.

    Returns:
        What was replaced: module, name, before, ours.
    """
    replaced: list[tuple[Any, str, Any, Any]] = []
    for name in _REMEMBERS:
        module = sys.modules.get(name)
        if module is not None and vars(module).get(_AS) is before:
            setattr(module, _AS, ours)
            replaced.append((module, _AS, before, ours))
    return replaced


def leave_alone(*functions: Callable[..., Any]) -> None:
    """Tells dynamo never to compile these functions; what they call is not affected."""
    skip = _skip()
    if skip is not None:
        for function in functions:
            skip(function.__code__)


def leave_modules_alone(*modules: ModuleType) -> None:
    """The same for everything defined in these modules."""
    skip = _skip()
    if skip is None:
        return
    for module in modules:
        for code in _codes(module):
            skip(code)


def _skip() -> Callable[[CodeType], None] | None:
    """The function that marks code, None if this torch has none."""
    frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    skip = getattr(frames, "skip_code", None)
    if callable(skip):
        return skip  # type: ignore[no-any-return]
    try:
        strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
        mark = frames.set_code_exec_strategy
    except AttributeError:
        return None
    return lambda code: mark(code, strategy)


def _codes(module: ModuleType) -> list[CodeType]:
    """Code of the module's functions and methods, and of the functions defined inside them."""
    found: list[CodeType] = []
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    for owner in (module, *kinds):
        for value in list(vars(owner).values()):
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            own = isinstance(function, FunctionType) and function.__module__ == module.__name__
            if own:
                found += _with_inner(function.__code__)
    return found


def _with_inner(code: CodeType) -> list[CodeType]:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [code, *(found for each in inner for found in _with_inner(each))]
