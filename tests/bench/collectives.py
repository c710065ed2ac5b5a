"""What the probe costs a collective: CPU time of the calling thread, paired, in one run.

    python -m tests.bench.collectives [--rounds N]

A group of one rank over gloo, so that nothing is waited for: rounds of equal calls without the
observer and with it in turn. `python` is `dist.all_reduce`, whose `Work.wait` is watched too;
`native` goes straight to the dispatcher, as DDP's reducer does, with completion callbacks as often
as the pace allows (here: never). CPU time, since the wall clock of a busy machine resolves no
microseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

from dpwatch.probe.collectives import observer as collectives

CALLS = 300


def main() -> None:
    """Measures both ways of calling and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    collectives.CallbackPace.due = lambda *_: False
    for name, call in (("python", _python), ("native", _native)):
        plain_us, extra_us = compare(call, rounds)
        low, high = extra_us[len(extra_us) // 4], extra_us[3 * len(extra_us) // 4]
        sys.stdout.write(
            f"{name}: {plain_us:.1f} µs, with the observer {statistics.median(extra_us):+.1f} µs"
            f" ({low:+.1f} … {high:+.1f}; range {extra_us[0]:+.1f} … {extra_us[-1]:+.1f})"
            f" over {rounds} pairs\n"
        )
    dist.destroy_process_group()


def compare(call: Callable[[], object], rounds: int) -> tuple[float, list[float]]:
    """Microseconds a call without the observer, and what it adds in each pair, sorted."""
    plain, extra = [], []
    timed(call)
    for _ in range(rounds):
        without = timed(call)
        observer = collectives.start(lambda record: None, lambda: 0)
        timed(call, 20)
        extra.append((timed(call) - without) / 1e3)
        observer.close()
        plain.append(without / 1e3)
    return statistics.median(plain), sorted(extra)


def timed(call: Callable[[], object], count: int = CALLS) -> float:
    """Nanoseconds of this thread's CPU time a call."""
    began = time.thread_time_ns()
    for _ in range(count):
        call()
    return (time.thread_time_ns() - began) / count


_payload = torch.zeros(4)


def _python() -> None:
    dist.all_reduce(_payload)


def _native() -> None:
    ops = torch.ops._c10d_functional
    group = dist.group.WORLD
    assert group is not None
    ops.wait_tensor(ops.all_reduce(_payload, "sum", group.group_name))


if __name__ == "__main__":
    main()
