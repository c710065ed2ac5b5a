"""Finds the user's line of Python: the one that issued a collective, or where a stuck rank is.

Both are the innermost frame that is not torch's, the standard library's, the probe's, a dependency
of torch's, or generated code: an import in torch may be many frames deep in sympy, and the line
that led there says more. Files under the directory that the process started in are named relative
to it, installed packages relative to site-packages (Debian: dist-packages), others by their last
two path components.
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
"""Frames searched for one of the user's; DDP's reducer is some ten frames away from it."""

_WITHIN = 16
"""Frames searched for a purpose, from a package's first frame on."""

_STDLIB = sysconfig.get_path("stdlib") + os.sep
_TORCHS = frozenset(
    ("filelock", "fsspec", "jinja2", "mpmath", "networkx", "numpy", "sympy", "typing_extensions.py")
)
"""Installed packages that torch depends on."""

_TYPED = ("<stdin>", "<ipython-", *(["<string>"] if sys.argv[:1] == ["-c"] else []))
"""Names of the user's code that is in no file; other names in <> are generated code."""

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_PACKAGE = str(Path(__file__).absolute().parents[2])
_OURS = tuple(
    os.path.join(_PACKAGE, part) for part in ("probe/", "runtime/", "wire/", "hook/", "__init__.py")
)
"""The parts of dpwatch that run in training processes; its trainer counts as a user script."""

_BOOTSTRAP = multiprocessing.process.BaseProcess._bootstrap.__code__  # type: ignore[attr-defined]
_HERE = os.path.abspath(os.curdir) + os.sep if os.path.isdir(os.curdir) else os.sep

Place = tuple[CodeType, int]
"""Code and a line number."""

Owner = tuple[CodeType, Purpose]
"""A framework's function, and what it communicates."""

_About = tuple[str, Purpose | None, bool, CodeType]
"""For code that is not passed over: its file if it is the user's or a package's, what is
communicated under it, whether frames further out may say more, and the code."""

_known: dict[int, _About | CodeType] = {}
"""By id, since hashing a code object takes time proportional to its instructions; the code is kept
alive, so its id stays unique. Code that is passed over is stored alone."""


def issuer() -> tuple[Place | None, Owner | None]:
    """Finds who issues a collective.

    Takes about a microsecond; it is turned into text later and elsewhere (`format_place`).

    Returns:
        The innermost of the caller's frames that is the user's or an installed package's; and the
        innermost frame below the user's own whose purpose is known.
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
    if len(_known) >= MOST_NAMES:  # a script that keeps generating code
        _known.clear()
    name, purpose = _name(code), purpose_of(code)
    goes_on = package_of(code.co_filename) in KNOWN
    about = (name, purpose, goes_on, code) if name or purpose else code
    _known[id(code)] = about
    return about


def _holds(purpose: Purpose, inside: CodeType | None) -> bool:
    """Whether the next inner frame is one that the purpose requires."""
    if purpose.native:
        return inside is not None and inside.co_filename.startswith(_OURS)
    return not purpose.within or (inside is not None and inside.co_name in purpose.within)


def format_place(place: Place | None) -> str:
    """`file:line` of what `issuer` found, "" for None."""
    return "" if place is None else f"{_name(place[0])}:{place[1]}"


def where_is(thread: int) -> tuple[tuple[int, int] | None, list[str], str]:
    """Where another thread is now.

    Args:
        thread: Its `threading.get_ident()`.

    Returns:
        A value that changes with any Python it runs (None: it has ended); its frames as `file:line
        function`, outermost first, of torch's only the innermost; and the innermost line of the
        user's.
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
    """The innermost of the user's lines that an exception passed, formatted as by `where_is`."""
    theirs = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if name := _name(code):
            theirs = f"{name}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return theirs


def root_of(thread: int) -> CodeType | None:
    """The function that a thread was given to run, None if it is in none of the user's.

    That is its outermost frame that is the user's own, or else an installed package's. In a
    multiprocessing child, only frames of its target count: a forked child also has the frames of
    the process that forked it.

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
    """Whether a thread is still in that function, at any depth."""
    return any(code is function for code in _codes(thread))


def _codes(thread: int) -> Iterator[CodeType]:
    """Code of a thread's frames, innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not _BOOTSTRAP:
        yield frame.f_code
        frame = frame.f_back


def place(code: CodeType) -> tuple[str, bool]:
    """A code's file as reported, and whether it is the user's."""
    name = _name(code)
    return name or _path(code), bool(name)


def _name(code: CodeType) -> str:
    """The code's file as reported, "" if it is not the user's."""
    path = code.co_filename
    if path.startswith((_TORCH, *_OURS)) or (path.startswith("<") and not path.startswith(_TYPED)):
        return ""
    told = _path(code)
    if installed(path):  # some installations keep packages inside the standard library's directory
        return "" if told.partition(os.sep)[0] in _TORCHS else told
    return "" if path.startswith(_STDLIB) else told


def _path(code: CodeType) -> str:
    path = code.co_filename
    if found := installed(path):
        return found
    if path.startswith(_HERE):
        return path.removeprefix(_HERE)
    return os.sep.join(path.split(os.sep)[-2:])
