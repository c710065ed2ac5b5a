"""What a tree of hubs costs: simulated ranks, a hub for each node's, and the head that has all.

    python -m tests.bench.tree [--nodes 4] [--ranks 256] [--load ddp] [--seconds 12]

Each node's hub is a real one with a runtime directory and a host name of its own, on this machine;
they meet at the head over TCP with CURVE, as those of several hosts do. Node 0's hub is the head
and has ranks of its own. CPU time as in `scale`. In the end the head's state is asked for, and
every step of every rank must be in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpwatch.runtime.curve_keys import make_keys
from dpwatch.runtime.paths import RunDir
from tests.bench.scale import DEADLINE_S, WARM_S, cpu_s, resident_mb, said, started, state_of
from tests.bench.simulated import LOADS

RUN_ID = "scale"


def main() -> None:
    """Measures and prints; or, as a node's hub, serves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=256, help="of each node")
    parser.add_argument("--load", choices=LOADS, default="ddp")
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the measurement")
    parser.add_argument("--serve", nargs=2, metavar=("HOST", "RUN_DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
    with tempfile.TemporaryDirectory(prefix="dpw") as folder:
        print(json.dumps(measure(Path(folder), options)))


def serve(host: str, run_dir: str) -> None:
    """A hub that takes this process's host for another one."""
    socket.gethostname = lambda: host
    sys.argv = ["dpwatch.hub", run_dir]
    runpy.run_module("dpwatch.hub", run_name="__main__")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    make_keys(folder / "keys")
    with contextlib.ExitStack() as stack:
        hubs = [stack.enter_context(hub(folder, node)) for node in range(options.nodes)]
        parts = [WARM_S * 10 / options.rate, options.seconds]
        ranks = [
            stack.enter_context(
                started(
                    "simulated", place.path, "--ranks", options.ranks, "--load", options.load,
                    "--rate", options.rate, "--first", node * options.ranks, "--world",
                    options.nodes * options.ranks, "--host", f"node{node}", "--parts", *parts,
                )
            )
            for node, (place, _) in enumerate(hubs)
        ]  # fmt: skip
        warm = [said(process) for process in ranks]
        before = [cpu_s(pid) for _, pid in hubs]
        last = [said(process) for process in ranks]
        spent = [cpu_s(pid) - at for (_, pid), at in zip(hubs, before, strict=True)]
        memory_mb = resident_mb(hubs[0][1])
        steps = sum(each["steps"] for each in last)
        state, size = state_of(hubs[0][0], steps)
        simulated_s = last[0]["simulated_s"] - warm[0]["simulated_s"]
        told = sum(rank.steps_done for rank in state.ranks.values())
        return {
            "nodes": options.nodes,
            "ranks": options.nodes * options.ranks,
            "head": spent[0] / simulated_s,
            "node": sum(spent[1:]) / max(1, len(spent) - 1) / simulated_s,
            "head_mb": memory_mb,
            "state_mb": size / 1e6,
            "lost_steps": steps - told,
            "dropped": sum(rank.dropped + rank.missed for rank in state.ranks.values()),
            "states_again": sum(host.resent for host in state.others.values()),
            "pace": last[0]["simulated_s"] / last[0]["wall_s"],
        }


@contextlib.contextmanager
def hub(folder: Path, node: int) -> Iterator[tuple[RunDir, int]]:
    """A node's hub, once its sockets are there."""
    place = RunDir(folder / f"n{node}" / RUN_ID)
    place.path.mkdir(mode=0o700, parents=True)
    env = {
        **os.environ,
        "DPWATCH_SPREAD": "1",
        "DPWATCH_NODE_RANK": str(node),
        "MASTER_ADDR": "127.0.0.1",
        "DPWATCH_KEYS": str(folder / "keys"),
        "DPWATCH_RUNTIME_DIR": str(place.path.parent),
    }
    command = [sys.executable, "-m", "tests.bench.tree", "--serve", f"node{node}", str(place.path)]
    process = subprocess.Popen(command, env=env)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while place.read_info() is None:
            if time.monotonic() > deadline:
                raise SystemExit(f"no hub in {place.path}")
            time.sleep(0.05)
        yield place, process.pid
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
