"""An hour of viewer and hub, with ranks that send ten records a second: does memory grow?

    python -m tests.bench.soak [--minutes 60] [--ranks 8]

Prints every minute what hub and viewer hold (resident). After the first fifth, in which what is
bounded fills up, the rest is halved: it exits with 1 if the second half's median of either is more
than `--grow-mb` above the first half's. Now and then a key changes the view, as a person would.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from .terminal import Dashboard, rss_bytes
from .tui import HEIGHT, ROW, WIDTH, running

RECORDS_HZ = 10
STEP_RECORDS = 5
"""Records a step of the simulated load: the step and its four collectives."""

SAMPLES_A_MINUTE = 6
MB = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--grow-mb", type=float, default=8.0, help="that much is let pass")
    options = parser.parse_args()
    held: dict[str, list[int]] = {"hub": [], "viewer": []}
    seconds, rate = options.minutes * 60, RECORDS_HZ / STEP_RECORDS
    with running(options.ranks, seconds, rate=rate) as (place, environment):
        hub = place.read_info()
        assert hub is not None
        with Dashboard(WIDTH, HEIGHT, environment) as screen:
            screen.until(ROW)
            began = time.monotonic()
            for sample in range(round(options.minutes * SAMPLES_A_MINUTE)):
                screen.press("123456789"[sample % 9])
                due = began + (sample + 1) * 60 / SAMPLES_A_MINUTE
                screen.follow(due - time.monotonic())
                held["hub"].append(rss_bytes(hub.hub_pid))
                held["viewer"].append(screen.rss_bytes)
                if (sample + 1) % SAMPLES_A_MINUTE == 0:
                    minute = (sample + 1) // SAMPLES_A_MINUTE
                    now = ", ".join(f"{who} {of[-1] / MB:.1f} MB" for who, of in held.items())
                    print(f"{minute:4} min: {now}", flush=True)
    return max([_judged(who, of, options.grow_mb * MB) for who, of in held.items()])


def _judged(who: str, held: Sequence[int], most: float) -> int:
    """Says how much more it held in the second half. Returns: 1 if that is too much, else 0."""
    settled = held[len(held) // 5 :]
    half = len(settled) // 2
    if not half:
        print(f"{who}: too short a time to tell")
        return 1
    grown = statistics.median(settled[half:]) - statistics.median(settled[:half])
    verdict = "too much" if grown > most else "fine"
    print(f"{who}: {grown / MB:+.1f} MB from the first half to the second: {verdict}")
    return int(grown > most)


if __name__ == "__main__":
    sys.exit(main())
