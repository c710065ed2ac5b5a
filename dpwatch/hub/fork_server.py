"""Forks hubs from a process that has their code loaded, so that they start at once.

`dpwatch run` keeps such a process beside its command. A pool's worker that trains for a second or
two and is then killed would be gone before a hub could start the usual way. The hubs of a sweep's
runs also share most of their memory.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

from dpwatch.hub.__main__ import compute_on_one_thread
from dpwatch.runtime.run_dir import RunDir
from dpwatch.runtime.spawn import hub_environment


class ForkServer:
    """Handle of the process that hubs are forked from. It ends with `close` or with its owner.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpwatch.hub.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=hub_environment(),
            cwd="/",
            start_new_session=True,  # no signals from the terminal
        )

    def start(self, place: RunDir, more: Mapping[str, str]) -> None:
        """Starts the run's hub if it has none: like `spawn.ensure_hub`, but by a fork.

        Args:
            place: The run's directory.
            more: Additional environment variables.

        Raises:
            OSError: The directory can't be created, or the process is gone.
        """
        if place.prepare() and self._process.stdin is not None:
            request = json.dumps({"path": str(place.path), "environment": dict(more)})
            self._process.stdin.write(f"{request}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Kills the process. Its hubs keep running."""
        self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()


def serve(requests: IO[str]) -> None:
    """Forks a hub for each request, one JSON object per line, until end of file."""
    compute_on_one_thread()
    import dpwatch.hub.server  # noqa: F401 - once here instead of in each hub

    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # `dpwatch run` blocks some signals
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # hubs are reaped automatically
    gc.collect()
    gc.freeze()  # keeps garbage collections in hubs from touching shared pages
    for line in requests:
        request = json.loads(line)
        if os.fork() == 0:
            _become_hub(Path(request["path"]), request["environment"])


def _become_hub(path: Path, environment: Mapping[str, str]) -> NoReturn:
    from dpwatch.hub.server import LINGER_S, main

    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ.update(environment)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, sys.stdin.fileno())  # the pipe belongs to the fork server
        os.close(null)
        linger_s = float(os.environ.get("DPWATCH_HUB_LINGER_S", LINGER_S))
        code = main(path, linger_s=linger_s)
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(sys.stdin)
