"""What a `print` costs with the tap on stdout, and without: `python -m tests.bench.prints`.

CPU time of the printing thread, in rounds that alternate; the sender's part is done between them.
"""

from __future__ import annotations

import statistics
import sys
import time

from dpwatch.probe.output.capture import MOST_WRITES, Tap

ROUNDS = 200
WRITES = 6
"""What one of these prints does: three values, two blanks, the end of the line."""
PRINTS = MOST_WRITES // WRITES
"""A round stays within what the tap keeps."""


def a_round(stream) -> float:
    """Microseconds a print of a line of 50 characters takes."""
    begun = time.thread_time_ns()
    for n in range(PRINTS):
        print("step", n, "loss 2.345678 and so on for a while", file=stream)
    return (time.thread_time_ns() - begun) / PRINTS / 1e3


def main() -> None:
    """Says the medians of both, for a file and for a line-buffered one."""
    told = sys.stdout
    for name, buffering in (("buffered, as into a pipe", -1), ("a line at a time", 1)):
        without, tapped = [], []
        with open("/dev/null", "w", buffering=buffering) as stream:
            sys.stdout = stream
            for turn in range(ROUNDS):
                for kind in (without, tapped)[:: 1 if turn % 2 else -1]:
                    tap = Tap() if kind is tapped else None
                    kind.append(a_round(stream))
                    if tap is not None:
                        tap.close()
                        begun = time.thread_time_ns()
                        tap.drain(last=True)
                        took_us = (time.thread_time_ns() - begun) / PRINTS / 1e3
            sys.stdout = told
        pairs = sorted(b - a for a, b in zip(without, tapped, strict=True))
        quarter = len(pairs) // 4
        print(
            f"{name}: {statistics.median(without):.2f} µs without, "
            f"{statistics.median(tapped):.2f} µs with: {statistics.median(pairs):+.2f} µs "
            f"(middle half {pairs[quarter]:+.2f} … {pairs[-quarter]:+.2f}); "
            f"sender {took_us:.2f} µs"
        )


if __name__ == "__main__":
    main()
