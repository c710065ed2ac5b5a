"""A viewer without a screen: follows a run at the frame rate and says what that cost.

    python -m tests.bench.viewer --ranks N --seconds 8

It prints one line of JSON: seconds until it was complete, then CPU seconds while it followed.
"""

from __future__ import annotations

import argparse
import json
import time

from dpwatch.viewer.watcher import Watcher


def main() -> None:
    """Follows the one run there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    began, cpu = time.monotonic(), time.process_time()
    watcher = Watcher()
    rows = 0
    while rows < options.ranks and time.monotonic() < began + 60:
        snapshot = watcher.next(0.01)
        rows = len(snapshot.runs[0].run.ranks) if snapshot and snapshot.runs else 0
    complete_s, complete_cpu_s = time.monotonic() - began, time.process_time() - cpu
    began, cpu, frames, slowest_s = time.monotonic(), time.process_time(), 0, 0.0
    while (now := time.monotonic()) < began + options.seconds:
        if watcher.next(1.0) is not None:
            frames += 1
            slowest_s = max(slowest_s, time.monotonic() - now)
    told = {
        "rows": rows,
        "complete_s": complete_s,
        "complete_cpu_s": complete_cpu_s,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.monotonic() - began,
        "frames": frames,
        "slowest_s": slowest_s,
    }
    print(json.dumps(told), flush=True)
    watcher.close()


if __name__ == "__main__":
    main()
