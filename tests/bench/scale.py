"""What hub and viewer cost at many ranks.

    python -m tests.bench.scale [--ranks 64 256 1024 4096] [--load steps ddp fsdp] [--json]
        [--write docs]

For each number of ranks: a real hub process, one process that sends what so many probes would
(`simulated`), and then a viewer that comes late (`viewer`), which is complete when it has every
rank's row. Measured is CPU time (of `/proc/PID/stat`), in seconds of a core for each simulated
second: on a machine that others use too, CPU time is still a fair measure and wall time is not.
The hub is measured alone and then with the viewer, once the window of steps that figures are taken
over is full. In the end the hub's state is asked for, and every step of every rank must be in it.

Where a machine is so busy that the hub gets no core (`pace` under 1, or memory that grows with
frames that wait), `chrt --rr 1` before the command gives it one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import zmq

from dpwatch.run.state.encoding import decode
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime import paths
from dpwatch.runtime.paths import RunDir
from dpwatch.wire import transport
from dpwatch.wire.viewer_messages import STATE_REQUEST
from tests.bench import scale_page
from tests.bench.simulated import LOADS

RANKS = (64, 256, 1024, 4096)
WARM_S = 14.0
"""Longer than the window of steps, at ten steps a second."""

MOST_RECORDS = 300_000
"""A second: more than that of steps and collectives no hub takes in."""

DEADLINE_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What one number of ranks cost.

    Attributes:
        hub: Share of a core, nobody watching.
        watched: The same with a viewer.
        hub_mb: Resident, in 10⁶ bytes.
        viewer: Share of a core at four frames a second, without drawing.
        frame_ms: CPU time of the viewer for a frame.
        complete_s: From the viewer's start until it had all rows, wall time, …
        complete_cpu_s: … and its CPU time.
        state_mb: The hub's whole state as it is sent.
        pace: Simulated seconds a second; under 1 the machine could not send so much.
        lost_steps: Steps sent that the state does not have.
        lost_frames: Gaps in the frames' numbers.
    """

    load: str
    ranks: int
    hub: float
    watched: float
    hub_mb: float
    records_per_s: float
    viewer: float
    frame_ms: float
    complete_s: float
    complete_cpu_s: float
    state_mb: float
    pace: float
    lost_steps: int
    lost_frames: int


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--load", choices=LOADS, nargs="+", default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, help="folder of scale.md, to be brought up to date")
    parser.add_argument("--read", type=Path, help="measurements of --json instead of new ones")
    options = parser.parse_args()
    costs = []
    for cost in read(options.read) if options.read else measured(options):
        costs.append(cost)
        print(json.dumps(cost._asdict()) if options.json else told(cost), flush=True)
    if options.write:
        scale_page.write(costs, options.write)


def measured(options: argparse.Namespace) -> Iterator[Cost]:
    for load in options.load:
        for ranks in options.ranks:
            if ranks * options.rate * (1 + len(LOADS[load].calls)) <= MOST_RECORDS:
                yield measure(load, ranks, options.rate, options.seconds)


def read(path: Path) -> list[Cost]:
    return [Cost(**json.loads(line)) for line in path.read_text().splitlines()]


def told(cost: Cost) -> str:
    return (
        f"{cost.load:5} {cost.ranks:5} ranks, {cost.records_per_s:7.0f} records/s: hub "
        f"{cost.hub:6.1%} of a core, {cost.watched:6.1%} watched, {cost.hub_mb:4.0f} MB; viewer "
        f"{cost.viewer:6.1%}, {cost.frame_ms:5.1f} ms a frame, complete after "
        f"{cost.complete_s:.2f} s ({cost.complete_cpu_s:.2f} s CPU); state {cost.state_mb:.1f} MB; "
        f"lost {cost.lost_steps} steps, {cost.lost_frames} frames; pace {cost.pace:.2f}"
    )


def measure(load: str, ranks: int, rate: float, seconds: float) -> Cost:
    """Runs hub, ranks and viewer."""
    with runtime_dir(), hub() as (place, pid):
        parts = [WARM_S * 10 / rate, seconds, seconds + 4]
        with started(
            "simulated", place.path, "--ranks", ranks, "--load", load, "--rate", rate,
            "--parts", *parts,
        ) as ranks_process:  # fmt: skip
            warm = said(ranks_process)
            before = cpu_s(pid)
            alone = said(ranks_process)
            between, hub_mb = cpu_s(pid), resident_mb(pid)
            with started("viewer", "--ranks", ranks, "--seconds", seconds - 2) as viewer_process:
                viewer = said(viewer_process)
                last = said(ranks_process)
            after = cpu_s(pid)
            state, size = state_of(place, last["steps"])
    simulated_s = alone["simulated_s"] - warm["simulated_s"]
    return Cost(
        load=load,
        ranks=ranks,
        hub=(between - before) / simulated_s,
        watched=(after - between) / (last["simulated_s"] - alone["simulated_s"]),
        hub_mb=hub_mb,
        records_per_s=(alone["records"] - warm["records"]) / simulated_s,
        viewer=viewer["cpu_s"] / viewer["wall_s"],
        frame_ms=1e3 * viewer["cpu_s"] / viewer["frames"],
        complete_s=viewer["complete_s"],
        complete_cpu_s=viewer["complete_cpu_s"],
        state_mb=size / 1e6,
        pace=last["simulated_s"] / last["wall_s"],
        lost_steps=int(last["steps"]) - steps_of(state),
        lost_frames=sum(rank.received.missing for rank in state.ranks.values()),
    )


def steps_of(state: RunState) -> int:
    """Steps that it has, the sum over all ranks."""
    return sum(rank.steps_done for rank in state.ranks.values())


@contextlib.contextmanager
def runtime_dir() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="dpw") as folder:
        os.environ["DPWATCH_RUNTIME_DIR"] = folder
        yield


@contextlib.contextmanager
def hub() -> Iterator[tuple[RunDir, int]]:
    place = paths.run_dir("scale")
    process = subprocess.Popen([sys.executable, "-m", "dpwatch.hub", str(place.path)])
    try:
        while place.read_info() is None:
            time.sleep(0.05)
        yield place, process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def started(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate("")


def said(process: subprocess.Popen[str]) -> dict[str, float]:
    line = _pipe(process.stdout).readline()
    if not line:
        raise SystemExit(f"{process.args} ended early")
    return json.loads(line)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def state_of(place: RunDir, steps: float) -> tuple[RunState, int]:
    """The hub's state once it has taken in all, and its size in bytes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = transport.ask_socket(context, place.ask)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while True:
            socket.send(STATE_REQUEST)
            answer = socket.recv_multipart()[-1]
            state = decode(memoryview(answer)[1:])
            if steps_of(state) >= steps or time.monotonic() > deadline:
                return state, len(answer)
            time.sleep(0.5)
    finally:
        socket.close()
        context.term()


def cpu_s(pid: int) -> float:
    """User and system time of all a process's threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
