"""Bytes that malloc has handed out and that are not yet freed, as glibc counts them (`mallinfo2`).

torch's CPU allocator keeps no statistics, but it uses malloc, so this figure rises and falls with
tensors to within a few bytes each. It includes whatever else the process allocates, but not the
memory of Python's own arenas or mapped files.

The call goes through a library handle that keeps the GIL: releasing it would let another thread of
the script run in between. It walks the free lists of all arenas, 0.5 µs in a young process. If
memory is so fragmented that this takes long, nothing is read any more.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import torch

SLOW_NS = 1_000_000
"""CPU time of a call from which on it is the last one."""

TRIAL_BYTES = 1 << 16
"""Allocated and freed once, to check whether torch uses this malloc; below its mmap threshold."""

_TRIALS = 3

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
           "fordblks", "keepcost")  # fmt: skip


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


class Heap:
    """Reads the heap; on the training thread only.

    Attributes:
        note: Why it cannot be read, "" while it can.
    """

    def __init__(self, cpu_ns: Callable[[], int] = time.thread_time_ns) -> None:
        self.note = ""
        self._cpu_ns = cpu_ns
        self._mallinfo2 = _find()
        self._proven = False
        if self._mallinfo2 is None:
            self.note = "this C library has no mallinfo2"

    def in_use(self) -> int | None:
        """Bytes in use, None if unknown."""
        if self.note or not (self._proven or self._prove()):
            return None
        began = self._cpu_ns()
        found = self._read()
        if self._cpu_ns() - began > SLOW_NS:
            self.note = "mallinfo2 takes too long: the heap is fragmented"
        return found

    def _read(self) -> int:
        told = self._mallinfo2()
        return int(told.uordblks + told.hblkhd)

    def _prove(self) -> bool:
        """Whether torch's allocations are counted: another malloc may replace glibc's."""
        if torch._C._autograd._profiler_enabled():  # it may list allocations; keep ours out
            return False
        for _ in range(_TRIALS):  # another thread may allocate or free meanwhile
            before = self._read()
            storage = torch.UntypedStorage(TRIAL_BYTES)  # type: ignore[no-untyped-call]
            grown = self._read() - before
            del storage
            left = self._read() - before
            if TRIAL_BYTES <= grown < 2 * TRIAL_BYTES and abs(left) < TRIAL_BYTES // 2:
                self._proven = True
                return True
        self.note = "torch's memory is not from glibc's malloc"
        return False


def _find() -> Any:
    try:
        mallinfo2 = ctypes.PyDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    mallinfo2.restype, mallinfo2.argtypes = _Mallinfo2, ()
    return mallinfo2
