"""Lets a thread query CUDA events while another one captures a graph.

A capture in global mode (the default of `torch.cuda.graph`) forbids such queries to every thread
and is invalidated by one, unless the querying thread has switched to thread-local mode, as NCCL's
own watchdog does. torch has no Python API for that, so the CUDA runtime that torch has loaded is
called through ctypes; no other library is ever loaded for it.
(https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__STREAM.html)
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

THREAD_LOCAL = 1
"""cudaStreamCaptureModeThreadLocal."""

_RUNTIME = re.compile(r"/\S*/libcudart[^/\s]*\.so[.\d]*$")


class NoCaptureMode(RuntimeError):
    """The thread's capture mode cannot be changed here."""


class CaptureMode:
    """The calling thread's capture interaction mode."""

    def __init__(self, runtime: Any) -> None:
        """Takes the CUDA runtime as ctypes (or a test) has it.

        Raises:
            NoCaptureMode: It has no such function.
        """
        try:
            self._exchange = runtime.cudaThreadExchangeStreamCaptureMode
        except AttributeError:
            raise NoCaptureMode("the CUDA runtime cannot change a thread's capture mode") from None
        self._exchange.argtypes = [ctypes.POINTER(ctypes.c_int)]
        self._exchange.restype = ctypes.c_int

    @contextmanager
    def thread_local(self) -> Iterator[None]:
        """Within the block, captures of other threads do not affect this thread.

        Raises:
            NoCaptureMode: The runtime refused.
        """
        before = self._swap(THREAD_LOCAL)
        try:
            yield
        finally:
            self._swap(before)

    def _swap(self, mode: int) -> int:
        """Sets the mode. Returns: the previous one."""
        value = ctypes.c_int(mode)
        code = self._exchange(ctypes.byref(value))
        if code:
            raise NoCaptureMode(f"cudaThreadExchangeStreamCaptureMode failed with error {code}")
        return value.value


def find(maps: Path = Path("/proc/self/maps")) -> CaptureMode:
    """The capture mode, through the CUDA runtime that this process has loaded.

    Raises:
        NoCaptureMode: There is none (CPU builds, ROCm, a statically linked runtime), or several.
    """
    paths = _runtimes(maps)
    if len(paths) != 1:
        found = "no" if not paths else "more than one"
        raise NoCaptureMode(f"{found} CUDA runtime (libcudart) is loaded by torch")
    try:
        runtime = ctypes.CDLL(paths.pop(), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError as error:
        raise NoCaptureMode(f"the CUDA runtime cannot be reached: {error}") from None
    return CaptureMode(runtime)


def _runtimes(maps: Path) -> set[str]:
    try:
        lines = maps.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {found.group() for line in lines if (found := _RUNTIME.search(line))}
