"""`python -m dpwatch.hub [--detach] RUN_DIR`: the hub process, started by probes and commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def detach() -> None:
    """Continues in a child in its own session, and ends this process.

    Called before any slow import, so that the starter waits only briefly.
    """
    if os.fork():
        os._exit(0)
    os.setsid()


def compute_on_one_thread() -> None:
    """Keeps numpy's OpenBLAS from starting a thread per core. Call before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


if __name__ == "__main__":
    compute_on_one_thread()
    arguments = sys.argv[1:]
    if arguments[:1] == ["--detach"]:
        detach()
        arguments = arguments[1:]
    if len(arguments) != 1:
        sys.exit("usage: python -m dpwatch.hub [--detach] RUN_DIR")
    from dpwatch.hub.server import LINGER_S, main

    linger_s = float(os.environ.get("DPWATCH_HUB_LINGER_S", LINGER_S))
    sys.exit(main(Path(arguments[0]), linger_s=linger_s))
