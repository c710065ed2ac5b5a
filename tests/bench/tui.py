"""What the dashboard costs, on a terminal, over a real hub and ranks that are simulated.

    python -m tests.bench.tui [--ranks 8,1024,4096] [--seconds 20] [--json FILE]

For each number of ranks a process of its own sends what so many probes would, four steps a second
each; a hub takes it in; `dpwatch` runs on a pseudo terminal of 120×35. Before that the same over
snapshots that lie ready (`canned`), in which every figure changes: what the drawing alone costs.
Prints, beside the goals:

- CPU of the viewer's process (its own alone, and from the kernel's count, so a busy machine does
  not change it much), and what it writes to the terminal, while nobody touches a key;
- the lag from a key to its effect on the screen: of the cursor's keys in the overview, and of help
  and back, where the whole screen is drawn anew;
- the time from its start to the first row of a rank, and its resident memory at the end.

Lag and first rows are given twice. By the wall clock they are the machine's, too, and mean little
where the load (printed beside them) is more than the machine has cores. The CPU time that the
viewer had meanwhile is its own, and the least that they can be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpwatch.runtime.paths import RunDir, run_dir

from .terminal import Dashboard, cpu_s, rss_bytes

RATE_HZ = 4
WIDTH, HEIGHT = 120, 35
ROW = "cuda:0"
CURSOR = (*(("j", f"▸{row:>6}  ") for row in range(1, 8)), ("g", f"▸{0:>6}  "))
VIEWS = (("?", "never quits"), ("1", ROW))
"""Keys, pressed in turn, and what is on the screen once each has had its effect."""

GOALS = {8: (3, 12, 50), 1024: (6, 50, 50), 4096: (15, None, None)}
"""By ranks: percent of a core, kB/s, ms of lag (p99)."""
FIRST_PAINT_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="8,1024,4096", metavar="N,N…")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each, without a key")
    parser.add_argument("--keys", type=int, default=60, help="pressed for the lag")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures: list[dict[str, object]] = []
    print(f"{WIDTH}×{HEIGHT}, {RATE_HZ} steps a second and rank; lag and first paint are wall time")
    for ranks in (int(each) for each in options.ranks.split(",")):
        for what, measure in (("drawing alone", drawing), ("over a hub", whole)):
            print(f"{ranks} ranks, {what}: ", end="", flush=True)
            try:
                found = measure(ranks, options.seconds, options.keys)
            except TimeoutError as error:
                print(str(error).splitlines()[0], flush=True)
                continue
            figures.append({"what": what, **found})
            print(told(found), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def drawing(ranks: int, seconds: float, keys: int) -> dict[str, float]:
    """The figures for the drawing alone: snapshots of so many ranks lie ready."""
    words = ("tests.bench.canned", str(ranks))
    with Dashboard(WIDTH, HEIGHT, os.environ, *words) as screen:
        return {"ranks": ranks, **_figures(screen, seconds, keys)}


def whole(ranks: int, seconds: float, keys: int) -> dict[str, float]:
    """The figures for `dpwatch` over a hub and so many ranks.

    Raises:
        TimeoutError: It did not show a rank, or did not follow a key.
    """
    with running(ranks, seconds) as (place, environment):
        hub = place.read_info()
        assert hub is not None
        with Dashboard(WIDTH, HEIGHT, environment) as screen:
            began, before = time.monotonic(), cpu_s(hub.hub_pid)
            figures = _figures(screen, seconds, keys)
            took_s, after = time.monotonic() - began, cpu_s(hub.hub_pid)
            return {
                "ranks": ranks,
                **figures,
                "hub_cpu_percent": 100 * (after - before) / took_s,
                "hub_rss_mb": rss_bytes(hub.hub_pid) / 1e6,
            }


def _figures(screen: Dashboard, seconds: float, keys: int) -> dict[str, float]:
    screen.until(ROW)
    first_paint_s, first_paint_cpu_s = time.monotonic() - screen.began, screen.cpu_s
    screen.follow(5.0)
    began, cpu, written = time.monotonic(), screen.cpu_s, screen.written
    screen.follow(seconds)
    took_s = time.monotonic() - began
    cpu, written = screen.cpu_s - cpu, screen.written - written
    wall, own = (sorted(each) for each in zip(*_lags(screen, keys, CURSOR), strict=True))
    wall_view, own_view = (sorted(each) for each in zip(*_lags(screen, keys, VIEWS), strict=True))
    return {
        "cpu_percent": 100 * cpu / took_s,
        "kb_per_s": written / took_s / 1e3,
        "lag_p50_ms": 1e3 * _quantile(wall, 0.5),
        "lag_p99_ms": 1e3 * _quantile(wall, 0.99),
        "lag_cpu_p50_ms": 1e3 * _quantile(own, 0.5),
        "lag_cpu_p99_ms": 1e3 * _quantile(own, 0.99),
        "view_lag_p50_ms": 1e3 * _quantile(wall_view, 0.5),
        "view_lag_p99_ms": 1e3 * _quantile(wall_view, 0.99),
        "view_lag_cpu_p50_ms": 1e3 * _quantile(own_view, 0.5),
        "view_lag_cpu_p99_ms": 1e3 * _quantile(own_view, 0.99),
        "first_paint_s": first_paint_s,
        "first_paint_cpu_s": first_paint_cpu_s,
        "rss_mb": screen.rss_bytes / 1e6,
        "load": os.getloadavg()[0],
    }


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(int(len(ordered) * q), len(ordered) - 1)]


def _lags(
    screen: Dashboard, keys: int, pressed: Sequence[tuple[str, str]]
) -> Iterator[tuple[float, float]]:
    """Seconds from each key to its effect, at moments that no refresh is in step with.

    Yields:
        Those by the wall clock, and of the viewer's CPU time.
    """
    for number in range(keys):
        screen.follow(0.1 + 0.037 * (number % 9))
        key, effect = pressed[number % len(pressed)]
        cpu = screen.cpu_s
        screen.press(key)
        wall = screen.until(effect)
        yield wall, screen.cpu_s - cpu


def told(f: dict[str, float]) -> str:
    """A line of figures with their goals."""
    cpu, rate, lag = GOALS.get(int(f["ranks"]), (None, None, None))
    parts = [
        f"{f['cpu_percent']:.1f} % of a core{_goal(cpu, '%')}",
        f"{f['kb_per_s']:.1f} kB/s{_goal(rate, 'kB/s')}",
        f"lag p50 {f['lag_p50_ms']:.0f} ms, p99 {f['lag_p99_ms']:.0f} ms{_goal(lag, 'ms')}, "
        f"of CPU {f['lag_cpu_p50_ms']:.0f} and {f['lag_cpu_p99_ms']:.0f} ms",
        f"of another view p50 {f['view_lag_p50_ms']:.0f} ms, p99 {f['view_lag_p99_ms']:.0f} ms, "
        f"of CPU {f['view_lag_cpu_p50_ms']:.0f} and {f['view_lag_cpu_p99_ms']:.0f} ms",
        f"first rows {f['first_paint_s']:.2f} s{_goal(FIRST_PAINT_S, 's')}, "
        f"of CPU {f['first_paint_cpu_s']:.2f} s",
        f"{f['rss_mb']:.0f} MB",
        f"load {f['load']:.1f}",
    ]
    if "hub_cpu_percent" in f:
        parts.append(f"hub {f['hub_cpu_percent']:.0f} %, {f['hub_rss_mb']:.0f} MB")
    return "; ".join(parts)


def _goal(goal: float | None, unit: str) -> str:
    return "" if goal is None else f" (goal {goal:g} {unit})"


@contextmanager
def running(
    ranks: int, seconds: float, *, rate: float = RATE_HZ, load: str = "ddp"
) -> Iterator[tuple[RunDir, dict[str, str]]]:
    """A hub and so many simulated ranks, in a runtime directory of their own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # they end, too
    with tempfile.TemporaryDirectory(prefix="dpw-") as folder:
        os.environ["DPWATCH_RUNTIME_DIR"] = folder
        environment = {**os.environ, "XDG_CONFIG_HOME": folder}
        place = run_dir("bench")
        assert place.prepare()
        hub = subprocess.Popen([sys.executable, "-m", "dpwatch.hub", str(place.path)])
        words = ["--ranks", str(ranks), "--load", load, "--rate", str(rate)]
        feed = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.simulated", str(place.path), *words,
             "--parts", "2", str(seconds + 3600)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert feed.stdout is not None
            feed.stdout.readline()  # two seconds are sent: every rank has spoken
            yield place, environment
        finally:
            for process in (feed, hub):
                process.terminate()
            for process in (feed, hub):
                process.wait()


if __name__ == "__main__":
    main()
