"""Where in the user's Python a thread is: who issued a collective, and what a stuck rank does.

The innermost frame that is neither torch's, the standard library's nor the probe's answers both.
Nor is it that of a package torch itself is made with, or of code that was generated: an import of
torch's stands many frames deep in sympy, and the line that led there says more.
Files under the directory that the process started in are named by their path there, installed
packages' by theirs in site-packages (Debian: dist-packages), others by the last two parts.
"""

from __future__ import annotations

import multiprocessing.process
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch

from dpwatch.probe.stack.frameworks import (
    KNOWN,
    NO_PURPOSE,
    Purpose,
    installed,
    package_of,
    purpose_of,
)

MOST_FRAMES = 16
MOST_NAMES = 16_384
_FAR = 80
"""Frames looked through for one of the user's; DDP's reducer is some ten frames away from it."""

_WITHIN = 16
"""Frames looked through for a purpose, from a package's first on."""

_STDLIB = sysconfig.get_path("stdlib") + os.sep
_TORCHS = frozenset(
    ("filelock", "fsspec", "jinja2", "mpmath", "networkx", "numpy", "sympy", "typing_extensions.py")
)
"""Installed packages that torch is made with."""

_TYPED = ("<stdin>", "<ipython-", *(["<string>"] if sys.argv[:1] == ["-c"] else []))
"""What the user's code is named that is in no file; other names in <> are of generated code."""

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_PACKAGE = str(Path(__file__).absolute().parents[2])
_OURS = tuple(
    os.path.join(_PACKAGE, part) for part in ("probe/", "runtime/", "wire/", "hook/", "__init__.py")
)
"""Of dpwatch what runs in other people's processes; its trainer is a script like theirs."""

_BOOTSTRAP = multiprocessing.process.BaseProcess._bootstrap.__code__  # type: ignore[attr-defined]
_HERE = os.path.abspath(os.curdir) + os.sep if os.path.isdir(os.curdir) else os.sep

Place = tuple[CodeType, int]
"""Code and a line number."""

Owner = tuple[CodeType, Purpose]
"""A framework's function, and what it exchanges."""

_About = tuple[str, Purpose | None, bool, CodeType]
"""Of code that is not just passed through: its file if it is the user's or a package's, what is
exchanged under it, whether that may be so further out too, and the code."""

_known: dict[int, _About | CodeType] = {}
"""By id, for to hash a code object takes as long as it has instructions; it is kept, so that the
id stays its own. Of code that is passed through it is all there is."""


def issuer() -> tuple[Place | None, Owner | None]:
    """Who issues a collective.

    Takes about a microsecond; text is made of it elsewhere and later (`format_place`).

    Returns:
        The innermost of the caller's frames that is the user's or an installed package's; and the
        innermost one whose purpose is known, of those below the user's own.
    """
    frame: FrameType | None = sys._getframe(1)
    known = _known
    place: Place | None = None
    owner: Owner | None = None
    inside: CodeType | None = None
    last = _FAR
    for depth in range(_FAR):
        if frame is None:
            break
        code = frame.f_code
        try:
            about = known[id(code)]
        except KeyError:
            about = _learn(code)
        if about is not code:
            name, purpose, goes_on, _ = about  # type: ignore[misc]
            if purpose is not None and owner is None:
                if _holds(purpose, inside):
                    owner = code, purpose
                elif purpose.native and place is None:
                    owner = code, NO_PURPOSE
            if name:
                if place is None:
                    place, last = (code, frame.f_lineno), depth + _WITHIN
                if owner is not None or not goes_on or depth >= last:
                    break
        inside = code
        frame = frame.f_back
    return place, owner


def _learn(code: CodeType) -> _About | CodeType:
    if len(_known) >= MOST_NAMES:  # a script that makes code as it goes
        _known.clear()
    name, purpose = _name(code), purpose_of(code)
    goes_on = package_of(code.co_filename) in KNOWN
    about = (name, purpose, goes_on, code) if name or purpose else code
    _known[id(code)] = about
    return about


def _holds(purpose: Purpose, inside: CodeType | None) -> bool:
    """Whether the frame just inside is one that the purpose asks for."""
    if purpose.native:
        return inside is not None and inside.co_filename.startswith(_OURS)
    return not purpose.within or (inside is not None and inside.co_name in purpose.within)


def format_place(place: Place | None) -> str:
    """`file:line` of what `issuer` found, "" of nothing."""
    return "" if place is None else f"{_name(place[0])}:{place[1]}"


def where_is(thread: int) -> tuple[tuple[int, int] | None, list[str], str]:
    """Where another thread is now.

    Args:
        thread: Its `threading.get_ident()`.

    Returns:
        What changes with any Python it runs (None: it is over); its frames as `file:line function`,
        outermost first, of torch only the innermost; and the innermost line that is the user's.
    """
    frame = sys._current_frames().get(thread)
    if frame is None:
        return None, [], ""
    mark = (id(frame), frame.f_lasti)
    lines: list[str] = []
    theirs = ""
    while frame is not None and len(lines) < MOST_FRAMES:
        name = _name(frame.f_code)
        line = f"{name or _path(frame.f_code)}:{frame.f_lineno} {frame.f_code.co_name}"
        if name or not lines:
            lines.insert(0, line)
        if name and not theirs:
            theirs = line
        frame = frame.f_back
    return mark, lines, theirs


def raised_at(trace: TracebackType | None) -> str:
    """The innermost of the user's lines that an exception came through, as `where_is` spells it."""
    theirs = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if name := _name(code):
            theirs = f"{name}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return theirs


def root_of(thread: int) -> CodeType | None:
    """The function that a thread has been given to run, None if it is at none of the user's.

    That is its outermost frame that is the user's own, or else an installed package's. Of a
    multiprocessing child only what it has been told to do counts: below that a forked one has the
    frames of who forked it.

    Args:
        thread: Its `threading.get_ident()`.
    """
    own = package = None
    for code in _codes(thread):
        if _name(code):
            if installed(code.co_filename):
                package = code
            else:
                own = code
    return own or package


def is_in(thread: int, function: CodeType) -> bool:
    """Whether a thread is still in that function, however far down."""
    return any(code is function for code in _codes(thread))


def _codes(thread: int) -> Iterator[CodeType]:
    """Of a thread's frames, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not _BOOTSTRAP:
        yield frame.f_code
        frame = frame.f_back


def place(code: CodeType) -> tuple[str, bool]:
    """A code's file as told, and whether it is the user's."""
    name = _name(code)
    return name or _path(code), bool(name)


def _name(code: CodeType) -> str:
    """The code's file as told, "" where it is not the user's."""
    path = code.co_filename
    if path.startswith((_TORCH, *_OURS)) or (path.startswith("<") and not path.startswith(_TYPED)):
        return ""
    told = _path(code)
    if installed(path):  # which some installations keep inside of the standard library's folder
        return "" if told.partition(os.sep)[0] in _TORCHS else told
    return "" if path.startswith(_STDLIB) else told


def _path(code: CodeType) -> str:
    path = code.co_filename
    if found := installed(path):
        return found
    if path.startswith(_HERE):
        return path.removeprefix(_HERE)
    return os.sep.join(path.split(os.sep)[-2:])
