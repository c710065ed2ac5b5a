"""Bytes a second over ssh while `dpwatch ssh` watches a run: `python -m tests.bench.ssh_bytes`.

An ssh server of its own on loopback, a hub, ranks that are simulated (a DDP load), and the real
command on a pseudo terminal. Every byte passes a proxy that counts them, so what ssh itself adds is
included, and the once-a-second listing of runs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests.bench.ssh_first import Delay
from tests.bench.terminal import Dashboard
from tests.bench.tui import ROW, running
from tests.sshd import MISSING, sshd

WARM_S = 20.0
"""Until the windows of steps are full, and the first view has gone over."""


def main() -> None:
    """Measures, and prints a line for each number of ranks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    if MISSING:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory(prefix="b-") as name, sshd(Path(name)) as server:
        for ranks in options.ranks:
            proxy = Delay(server.port, 0.0)
            down, up = measure(server.ssh, proxy, ranks, options.seconds)
            print(f"{ranks:3} ranks: {down:5.1f} kB/s down, {up:4.1f} kB/s up", flush=True)


def measure(ssh: list[str], proxy: Delay, ranks: int, seconds: float) -> tuple[float, float]:
    """kB/s from the host and to it."""
    with running(ranks, WARM_S + seconds) as (place, environment):
        command = [*ssh, "-p", str(proxy.port), "-oStrictHostKeyChecking=no"]
        environment = {
            **environment,
            "DPWATCH_SSH": " ".join(command),
            "DPWATCH_REMOTE_DIR": os.fspath(place.path.parent),
        }
        with Dashboard(120, 35, environment, "dpwatch", "ssh", "node1") as screen:
            screen.until(ROW)
            screen.follow(WARM_S)
            before = dict(proxy.passed)
            screen.follow(seconds)
            after = dict(proxy.passed)
    return tuple((after[way] - before[way]) / seconds / 1e3 for way in ("down", "up"))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
