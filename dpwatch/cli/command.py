"""The user's command as a child process.

It gets our terminal, our standard streams, and the signals sent to us. Signals from the terminal
(Ctrl-C) reach both processes anyway, and are not forwarded a second time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from dpwatch.cli.errors import CommandError

NOT_FOUND, NOT_EXECUTABLE = 127, 126

_FROM_KERNEL = 0x80
"""`si_code` of a signal from the kernel, such as the terminal's."""

_PASSED_ON = {
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
}


class Command:
    """Runs from `with` until it ends by itself; `turn` waits for that and forwards signals.

    Attributes:
        code: Its exit code once it has ended, 128 + n for signal n, as in a shell.
        status: The same, but −n for signal n; None while it runs.
        interrupted_ns: When Ctrl-C was first pressed or SIGINT first sent, None if never.

    Raises:
        CommandError: It can't be started.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.code = 0
        self.status: int | None = None
        self.interrupted_ns: int | None = None
        self._awaited = _PASSED_ON | {signal.SIGCHLD}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        try:
            self._process = subprocess.Popen(
                words,
                env=environment,
                close_fds=False,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, self._mask),
            )
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            missing = isinstance(error, FileNotFoundError)
            raise CommandError(
                f"cannot run {words[0]}: {os.strerror(error.errno or 0)}",
                NOT_FOUND if missing else NOT_EXECUTABLE,
            ) from None

    def turn(self, timeout_s: float) -> bool:
        """Waits for a signal and forwards it. Returns: whether the command still runs."""
        told = signal.sigtimedwait(self._awaited, timeout_s)
        if told is not None and told.si_signo == signal.SIGINT:
            self.interrupted_ns = self.interrupted_ns or time.monotonic_ns()
        if told is not None and told.si_signo in _PASSED_ON and told.si_code != _FROM_KERNEL:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(told.si_signo)
        ended = self._process.poll()
        if ended is None:
            return True
        self.status = ended
        self.code = 128 - ended if ended < 0 else ended
        return False

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status is None:  # not followed to its end, which is no reason to kill it
            while self.turn(1.0):
                pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
