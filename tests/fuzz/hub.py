"""A million damaged frames to a real hub: `python -m tests.fuzz.hub [--frames N] [--seed N]`.

Meanwhile a real rank streams. At the end the hub must live, have grown little, have written a few
lines to its log, and show that rank's figures as they are. Exit code 1 if any of that isn't so.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import zmq

from dpwatch.runtime import paths
from dpwatch.viewer.watcher import Watcher
from dpwatch.wire import codec, transport
from tests.frames import ddp_run
from tests.fuzz.mutations import Mutator

REAL, REAL_STEPS = 12_345, 200
GROWTH_MB = 64
"""What a hub may grow by after its first tenth, in which its windows fill."""


def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def connected(context, place):
    socket = transport.push_socket(context, place.ingest)
    socket.setsockopt(zmq.SNDHWM, 16)
    return socket


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fz") as folder:
        os.environ["DPWATCH_RUNTIME_DIR"] = folder
        place = paths.run_dir("run")
        hub = subprocess.Popen([sys.executable, "-m", "dpwatch.hub", str(place.path)])
        try:
            found = fuzz(place, hub, options.frames, options.seed)
        finally:
            hub.kill()
            hub.wait()
    for line in found:
        print(f"WRONG: {line}")
    return int(bool(found))


def fuzz(place, hub, frames, seed):
    """Returns: what is wrong after so many frames."""
    while place.read_info() is None:
        time.sleep(0.05)
    context = zmq.Context()
    strangers, rank = connected(context, place), connected(context, place)
    real = [
        codec.encode(msgspec.structs.replace(frame, rank=REAL, pid=7))
        for frame in list(ddp_run(steps=REAL_STEPS, ranks=1))[:-1]
    ]
    mutator, early_mb, began = Mutator(seed), 0.0, time.monotonic()
    for number in range(frames):
        strangers.send(mutator.next())
        if real and number % max(1, frames // 2 // len(real)) == 0:
            rank.send(real.pop(0))
        if number == frames // 10:
            early_mb = resident_mb(hub.pid)
        if number % (frames // 10) == 0:
            print(f"{number} frames, hub {resident_mb(hub.pid):.0f} MB", flush=True)
    for frame in real:
        rank.send(frame)
    shown, wrong = look(hub), []
    seconds = time.monotonic() - began
    if hub.poll() is not None:
        return [f"the hub ended with {hub.returncode}"]
    late_mb = resident_mb(hub.pid)
    lines = place.log_file.read_text().splitlines()
    print(f"{frames} frames (seed {seed}) in {seconds:.0f} s, {frames / seconds:.0f}/s; "
          f"hub {early_mb:.0f} MB after a tenth, {late_mb:.0f} MB at the end")  # fmt: skip
    print("\n".join(line[:160] for line in lines[-3:]))
    if late_mb - early_mb > GROWTH_MB:
        wrong.append(f"it grew by {late_mb - early_mb:.0f} MB")
    if len(lines) > 80 or any("could not be applied" in line for line in lines):
        wrong.append(f"its log has {len(lines)} lines: {lines[-1]}")
    if shown != (REAL_STEPS, 0, 100.0, 3200):
        wrong.append(f"the real rank's figures are {shown}")
    hub.send_signal(signal.SIGTERM)
    if hub.wait(30) != 0:
        wrong.append(f"the hub ended with {hub.returncode}")
    for socket in (strangers, rank):
        socket.close()
    context.term()
    return wrong


def look(hub):
    """The real rank's steps, dropped records, median step in ms and peak, once they are whole."""
    watcher, deadline, found = Watcher(), time.monotonic() + 120, None
    try:
        while time.monotonic() < deadline and hub.poll() is None:
            snapshot = watcher.next(1)
            rows = [r for v in (snapshot.runs if snapshot else ()) for r in v.run.ranks]
            for row in rows:
                if row.rank == REAL:
                    found = (row.steps, row.dropped, row.step_ms.p50, row.memory.peak_bytes)
            if found and found[0] == REAL_STEPS:
                break
    finally:
        watcher.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
