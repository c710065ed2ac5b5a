"""Hubs forked from one process that has all of their code loaded, so that one is there at once.

`dpwatch run` keeps such a process beside its command. A worker that trains for a second or two, and
is then killed by its pool, would be gone before a hub of its own had started; and the hubs of a
sweep's many runs share most of their memory.
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


class Nursery:
    """The process that hubs are forked from, as its owner has it. It ends with `close`, or with us.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpwatch.hub.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=hub_environment(),
            cwd="/",
            start_new_session=True,  # the terminal's signals are not for it
        )

    def start(self, place: RunDir, more: Mapping[str, str]) -> None:
        """Starts the run's hub if none lives there; as `spawn.ensure_hub`, and as quick as a fork.

        Raises:
            OSError: The folder can't be made, or the process is gone.
        """
        if place.prepare() and self._process.stdin is not None:
            told = json.dumps({"path": str(place.path), "environment": dict(more)})
            self._process.stdin.write(f"{told}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends it at once. Its hubs live on."""
        self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()


def serve(requests: IO[str]) -> None:
    """Forks a hub for each line, until there are no more."""
    compute_on_one_thread()
    import dpwatch.hub.server  # noqa: F401 - here and not in each hub

    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # `dpwatch run` waits for some itself
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for hubs
    gc.collect()
    gc.freeze()  # so that a hub's collections touch none of the pages it shares
    for line in requests:
        told = json.loads(line)
        if os.fork() == 0:
            _become_hub(Path(told["path"]), told["environment"])


def _become_hub(path: Path, environment: Mapping[str, str]) -> NoReturn:
    from dpwatch.hub.server import LINGER_S, main

    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ.update(environment)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, sys.stdin.fileno())  # the pipe is the nursery's
        os.close(null)
        linger_s = float(os.environ.get("DPWATCH_HUB_LINGER_S", LINGER_S))
        code = main(path, linger_s=linger_s)
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(sys.stdin)
