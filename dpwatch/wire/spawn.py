"""Starting a run's hub: one detached process a host and run, whoever needs it first.

It lies here, and not beside the hub, because probes start hubs and may not import them.
"""

from __future__ import annotations

import os
import subprocess
import sys

from dpwatch.wire import nodes
from dpwatch.wire.paths import RunDir

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LD_PRELOAD", "PYTHONSTARTUP")


def ensure_hub(place: RunDir) -> None:
    """Starts the run's hub if none lives there; returns when it has been launched, not when ready.

    The hub detaches itself (its own session, no parent to leave a zombie to) and takes the run's
    lock; a second one that was started at the same moment finds the lock taken and ends.

    Raises:
        OSError: No folder could be made, or no process started.
    """
    if not place.prepare():
        return
    starter = subprocess.Popen(
        [sys.executable, "-m", "dpwatch.hub", "--detach", str(place.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=hub_environment(),
        close_fds=True,
        cwd="/",
    )
    starter.wait()


def hub_environment() -> dict[str, str]:
    """A hub's environment: this process's, less what makes it a rank."""
    kept = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    return kept | nodes.variables_for_hub(os.environ)
