"""Processes that a session starts, and that end with it in any case."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

PATIENCE_S = 5.0
"""Time for a process to terminate before it is killed."""

_PR_SET_PDEATHSIG = 1


class Child:
    """A Python process in its own session, which a Ctrl-C does not reach.

    On Linux it is terminated when the thread that started it ends, so start it from the main
    thread.

    Args:
        arguments: Arguments of the interpreter.
        stdin: Its standard input, empty by default.
        pass_fds: Open descriptors that it inherits.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: IO[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._output = tempfile.TemporaryFile("w+", prefix="dpwatch-demo-")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL,
            stderr=self._output,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=_die_with_parent,
        )

    @property
    def exit_code(self) -> int | None:
        """Its exit code, −n if signal n ended it, None while it runs."""
        return self._process.poll()

    @property
    def last_stderr_line(self) -> str:
        """The last line it wrote to stderr, "" if it wrote nothing."""
        self._output.seek(0)
        lines = [line.strip() for line in self._output if line.strip()]
        return lines[-1] if lines else ""

    def end(self) -> None:
        """Ends it, if it is still running."""
        if self.exit_code is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                # Its own children notice its death and exit too; its process group is killed too.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._output.close()


def _die_with_parent() -> None:
    """In the child: terminates when the parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
