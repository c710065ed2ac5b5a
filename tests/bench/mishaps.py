"""What a step costs while something goes wrong beside it, against a calm moment just before.

    python -m tests.bench.mishaps [--rounds 5] [--seconds 3]

Each round is a training: two ranks with DistributedDataParallel under the probe, which tell when
each step began. In turn there is a calm stretch, then one of the same length in which a mishap
happens to the hub, a viewer or their files. Printed is the median step of the second over that of
the first: the median and the range of all rounds, beside that of stretches in which nothing
happens. Training must not notice: what differs is the machine's noise, and the CPU time that a hub
or a viewer takes from the ranks where cores are few.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from dpwatch.runtime.paths import RunDir, run_dir

RANKS = 2
PATIENCE_S = 60.0
VIEWER = "from dpwatch.viewer.watcher import Watcher\nw = Watcher()\nwhile True: w.next(1)"


def train(folder: str) -> None:
    """A rank, until the file `over` is there. The first one writes when its steps began (ns)."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import dpwatch

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    place = Path(folder)
    store = f"file://{place}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    dpwatch.watch()
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    began, over = array("q"), torch.zeros(1)
    while not over.item():
        began.append(time.monotonic_ns())
        model(torch.randn(128, 512)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        over[0] = (place / "over").exists()
        dist.all_reduce(over)  # both end with the same step
    if rank == 0:
        (place / "began").write_bytes(began.tobytes())
    dist.destroy_process_group()


def nothing(place: RunDir) -> None:
    """Nothing happens."""


def hub_killed(place: RunDir) -> None:
    """The hub is killed; the ranks start another one."""
    os.kill(_hub(place), signal.SIGKILL)


def hub_stopped(place: RunDir) -> None:
    """The hub stands still for two seconds."""
    pid = _hub(place)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(pid, signal.SIGCONT)


def folder_removed(place: RunDir) -> None:
    """The run's folder is taken away."""
    gone = place.path.with_suffix(".gone")
    place.path.rename(gone)
    shutil.rmtree(gone)


def viewer_killed(place: RunDir) -> None:
    """A viewer comes, and is killed a second later."""
    viewer = _viewer()
    time.sleep(1.0)
    viewer.kill()
    viewer.wait()


def viewer_stopped(place: RunDir) -> None:
    """A viewer comes, and stands still until the end of the stretch."""
    viewer = _viewer()
    time.sleep(1.0)
    viewer.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    viewer.kill()
    viewer.wait()


MISHAPS = (nothing, hub_killed, hub_stopped, folder_removed, viewer_killed, viewer_stopped)


def _viewer() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", VIEWER])


def _hub(place: RunDir) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while (info := place.read_info()) is None or not _lives(info.hub_pid):
        if time.monotonic() > deadline:
            raise TimeoutError("no hub came")
        time.sleep(0.05)
    return info.hub_pid


def _lives(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def stretches(place: RunDir, seconds: float) -> list[list[tuple[int, int]]]:
    """Lets everything happen in turn. Returns: from when to when was calm, and was not, in ns."""
    found = []
    for mishap in MISHAPS:
        _hub(place)
        time.sleep(1.0)
        calm = time.monotonic_ns()
        time.sleep(seconds)
        then = time.monotonic_ns()
        mishap(place)
        time.sleep(max(0.0, seconds - (time.monotonic_ns() - then) / 1e9))
        found.append([(calm, then), (then, time.monotonic_ns())])
    return found


def one_round(seconds: float) -> list[list[float]]:
    """A training. Returns: by mishap the median step, calm and with it, in ms."""
    with tempfile.TemporaryDirectory(prefix="dpw-") as folder:
        os.environ.update(DPWATCH_RUNTIME_DIR=f"{folder}/rt", DPWATCH_RUN_ID="run")
        os.environ.update(DPWATCH_HUB_LINGER_S="1", OMP_NUM_THREADS="1")
        words = "import sys; from tests.bench.mishaps import train; train(sys.argv[1])"
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", words, folder], env={**os.environ, "RANK": str(rank)}
            )
            for rank in range(RANKS)
        ]
        try:
            found = stretches(run_dir("run"), seconds)
        finally:
            Path(folder, "over").touch()
            for rank in ranks:
                rank.wait(PATIENCE_S)
        # A hub that lingers would make the folder anew.
        deadline = time.monotonic() + PATIENCE_S
        while run_dir("run").has_hub() and time.monotonic() < deadline:
            time.sleep(0.1)
        began = array("q")
        began.frombytes(Path(folder, "began").read_bytes())
    return [[median_ms(began, *stretch) for stretch in each] for each in found]


def median_ms(began: Sequence[int], start: int, end: int) -> float:
    """The median step of those that began in between."""
    steps = began[bisect_left(began, start) : bisect_left(began, end)]
    return statistics.median(b - a for a, b in pairwise(steps)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    rounds = [one_round(options.seconds) for _ in range(options.rounds)]
    print(f"{options.rounds} rounds, {options.seconds:g} s each; load {os.getloadavg()[0]:.1f}")
    for mishap, pairs in zip(MISHAPS, zip(*rounds, strict=True), strict=True):
        ratios = sorted(then / calm for calm, then in pairs)
        calm_ms = statistics.median(calm for calm, _ in pairs)
        print(
            f"{mishap.__name__.replace('_', ' '):16} a step of {calm_ms:.2f} ms took "
            f"{statistics.median(ratios):.3f} times as long ({ratios[0]:.3f} … {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
