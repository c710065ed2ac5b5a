"""Takes the Python stacks of all threads of this process, on the sender thread.

Nothing is stopped: the interpreter is asked for the threads' frames, which are read one by one. So
the frames of a fast-moving thread may be a few microseconds apart. The work and the output are
bounded, whatever the program's depth and number of threads.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from types import CodeType, FrameType

from dpwatch.probe.stack.call_site import place
from dpwatch.wire.messages import Stacks, ThreadStack

MOST_THREADS = 32
INNERMOST, OUTERMOST = 21, 9
"""Frames reported per thread; a line between them stands for omitted ones."""

FARTHEST = 2048
"""Frames examined per thread."""

PATH_CHARS, NAME_CHARS = 72, 36

_IMPORTING = "<frozen importlib"
"""Six frames per module being imported, which tracebacks omit too."""

_Place = tuple[CodeType, int | None]
_Walk = tuple[list[_Place], deque[_Place], int, bool]
"""A thread's innermost places, its outermost places, the number in between, and whether that is
all."""


def stacks_of(training: int, asked: int) -> Stacks:
    """The stacks of all threads but the calling one.

    Args:
        training: The training thread's `threading.get_ident()`.
        asked: Number of the request that this answers.
    """
    taken_ns = time.monotonic_ns()
    walked = _walked()
    walked.pop(threading.get_ident(), None)
    # Not `threading.enumerate`: a stuck thread may hold its lock.
    known: dict[int, threading.Thread] = dict(getattr(threading, "_active", {}))
    order = sorted(walked, key=lambda ident: (ident != training, _name(known.get(ident))))
    return Stacks(
        asked=asked,
        taken_ns=taken_ns,
        threads=[
            _thread_stack(known.get(ident), ident == training, *walked[ident])
            for ident in order[:MOST_THREADS]
        ],
        left_out=max(0, len(order) - MOST_THREADS),
    )


def tid_of(ident: int) -> int | None:
    """Kernel thread id of the thread with that `get_ident()`, None if unknown to Python."""
    return _tid(getattr(threading, "_active", {}).get(ident))


def _walked() -> dict[int, _Walk]:
    """A function of its own, so that the user's frames are not referenced longer than necessary."""
    frames = sys._current_frames()
    walked: dict[int, _Walk] = {}
    while frames:
        ident, frame = frames.popitem()
        walked[ident] = _walk(frame)
    return walked


def _walk(frame: FrameType | None) -> _Walk:
    inner: list[_Place] = []
    outer: deque[_Place] = deque(maxlen=OUTERMOST)
    between = seen = 0
    while frame is not None and seen < FARTHEST:
        seen += 1
        at = frame.f_code, frame.f_lineno
        frame = frame.f_back
        if at[0].co_filename.startswith(_IMPORTING):
            continue
        if len(inner) < INNERMOST:
            inner.append(at)
        else:
            between += len(outer) == OUTERMOST
            outer.append(at)
    return inner, outer, between, frame is None


def _thread_stack(
    thread: threading.Thread | None,
    training: bool,
    inner: list[_Place],
    outer: deque[_Place],
    between: int,
    whole: bool,
) -> ThreadStack:
    frames = [] if whole else [f"… more than {FARTHEST} frames"]
    theirs: int | None = None
    for code, number in reversed(outer):
        theirs = _add(frames, code, number, theirs)
    if between:
        frames.append(f"… {between} frames left out")
    for code, number in reversed(inner):
        theirs = _add(frames, code, number, theirs)
    return ThreadStack(_name(thread), training, _tid(thread), frames, theirs)


def _add(frames: list[str], code: CodeType, number: int | None, theirs: int | None) -> int | None:
    """Adds a frame. Returns: index of the innermost frame that is the user's."""
    path, users = place(code)
    frames.append(f"{_end(path)}:{number or '?'} {_utf8(code.co_name[:NAME_CHARS])}")
    return len(frames) - 1 if users else theirs


def _tid(thread: threading.Thread | None) -> int | None:
    if thread is threading.main_thread() and sys.platform == "linux":
        return os.getpid()  # in a forked child `native_id` is still the parent's
    return None if thread is None else thread.native_id


def _name(thread: threading.Thread | None) -> str:
    return "" if thread is None else _utf8(str(thread.name)[:NAME_CHARS])


def _end(path: str) -> str:
    """The end of a long path, starting with a directory's name if possible."""
    if len(path) > PATH_CHARS:
        end = path[1 - PATH_CHARS :]
        path = "…" + (end[end.find("/") :] if "/" in end[:-1] else end)
    return _utf8(path)


def _utf8(text: str) -> str:
    """Replaces what cannot be encoded; file names may hold arbitrary bytes."""
    return text.encode("utf-8", "replace").decode()
