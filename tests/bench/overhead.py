"""What the probe costs a training step: paired, alternating, in one run.

    python tests/bench/overhead.py [--seconds S] [--json]

Identical steps of a small real training run without and with the probe in turn, so that the
machine's drift falls on both. Two comparisons, for steps of about 1 ms and about 20 ms:

- `hooks`: single steps in the order off, on, on, off. A pair's cost is the difference of two
  neighbours. The steps on are of three kinds: counted, looked at, and measured besides. Of each
  kind's pairs the median is taken, and of these the mean by how many steps are of the kind: a step
  that the machine held up counts no more than any other, and so it resolves microseconds. Off is a
  thread without a lane, whose calls pass straight through the hooks (taking them out would empty
  the interpreter's caches and slow the next step down); what passing through costs is measured by
  itself and added. So is the sender's CPU time per step, the most that it could take from the
  training thread by sharing the GIL with it.
- `blocks`: blocks of steps without a probe and with one, started and closed, everything in it: the
  sender, and the sampled memory ledger. Mean step against mean step: unbiased, but a noisy machine
  leaves it wide.
- `start`: whole processes that import torch, train a few steps and end, without the probe and with
  it: seconds to the end of the first step, and resident memory after the last.

A separate process reads what is sent, as a hub would. Each figure is the median over the pairs with
its 95 % confidence interval (of `hooks` by resampling the pairs), the middle half and the range.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

import dpwatch
from dpwatch.probe import probe as probe_module
from dpwatch.probe.instruments import NoLedger
from dpwatch.probe.probe import Probe
from dpwatch.probe.steps.lanes import here
from dpwatch.runtime import paths

READER = """
import sys, zmq
from dpwatch.wire import codec, transport
from dpwatch.runtime.paths import RunDir
from pathlib import Path
place = RunDir(Path(sys.argv[1]))
lock = place.try_lock()  # so that the probe finds a hub here
socket = transport.pull_socket(zmq.Context.instance(), place.ingest)
print("ready", flush=True)
records = 0
while True:
    batch = codec.decode(socket.recv())
    records += len(batch.records)
"""


class Size(NamedTuple):
    """A training step's shape, and how many make a block."""

    name: str
    width: int
    depth: int
    batch: int
    block: int


SIZES = (
    Size("1 ms", 96, 2, 32, 1500),
    Size("20 ms", 512, 6, 96, 25),
)
WARM_UP = 25
RESAMPLED = 500


Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Spread(NamedTuple):
    """Of one cost over all pairs: median, its 95 % confidence interval, middle half, range."""

    median: float
    sure: tuple[float, float]
    half: tuple[float, float]
    whole: tuple[float, float]


STEPS_OF_A_START = 60

START = f"""
import sys, time
import torch, torch.distributed, torch.utils.data
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
optimizer = torch.optim.Adam(model.parameters())
began = time.monotonic()
if sys.argv[1] == "on":
    import dpwatch
    dpwatch.watch()
for step in range({STEPS_OF_A_START}):
    optimizer.zero_grad()
    model(torch.ones(8, 96)).sum().backward()
    optimizer.step()
    if not step:
        first = time.monotonic() - began
pages = int(open("/proc/self/statm").read().split()[1])
print(first, pages * {os.sysconf("SC_PAGE_SIZE")} / 2**20)
"""


class Start(NamedTuple):
    """What the probe adds to a process: seconds until its first step is over, and MiB held."""

    seconds: Spread
    mebibytes: Spread
    pairs: int


class Cost(NamedTuple):
    """The probe's cost per step, for one size.

    Attributes:
        step_us: The step without the probe.
        hooks_us: What the hooks add to it, …
        through_us: … besides this, which calls that pass through them cost.
        sender_us: CPU time of the sender thread a step.
        total_percent: All three, of the step.
        blocks_percent: What whole blocks with a probe take longer.
        pairs: Of steps, of blocks.
    """

    name: str
    step_us: float
    hooks_us: Spread
    through_us: float
    sender_us: float
    total_percent: float
    blocks_percent: Spread
    pairs: tuple[int, int]


def main(arguments: list[str] | None = None) -> None:
    """Measures both sizes and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=100.0, help="for all of it, about")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with reader():
        costs = [measure(size, options.seconds / 4) for size in SIZES]
        start = starts()
    out = sys.stdout.write
    if options.json:
        told = {"steps": [cost._asdict() for cost in costs], "start": start._asdict()}
        out(json.dumps(told) + "\n")
        return
    out("median [95 % sure] (middle half; range), per step\n")
    for cost in costs:
        steps, blocks = cost.pairs
        out(
            f"{cost.name}: step {cost.step_us:.0f} µs; hooks {_said(cost.hooks_us, 'µs', 1)} over"
            f" {steps} pairs, passing through {cost.through_us:.1f} µs,"
            f" sender {cost.sender_us:.1f} µs: {cost.total_percent:+.2f} %\n"
            f"  whole blocks, memory ledger and all: {_said(cost.blocks_percent, '%', 2)}"
            f" over {blocks} pairs\n"
        )
    out(
        f"start: {_said(start.seconds, 's', 2)} to the first step's end,"
        f" {_said(start.mebibytes, 'MiB', 1)} resident, over {start.pairs} pairs\n"
    )


def _said(spread: Spread, unit: str, digits: int) -> str:
    mid = f"{spread.median:+.{digits}f} {unit}"
    sure, half, whole = (
        f"{low:+.{digits}f} … {high:+.{digits}f}"
        for low, high in (spread.sure, spread.half, spread.whole)
    )
    return f"{mid} [{sure}] ({half}; range {whole})"


def measure(size: Size, seconds: float) -> Cost:
    """Runs both comparisons for about `seconds` each."""
    off, on, kinds, sender_us = pairs_of_steps(size, seconds)
    plain_us = float(np.median(off)) / 1e3
    hooks = spread_of_kinds((on - off) / 1e3, kinds)
    through_us = passing_through(size)
    blocks_off, blocks_on = blocks(size, seconds)
    return Cost(
        size.name,
        plain_us,
        hooks,
        through_us,
        sender_us,
        100 * (hooks.median + through_us + sender_us) / plain_us,
        spread([100 * (b - a) / a for a, b in zip(blocks_off, blocks_on, strict=True)]),
        (len(off), len(blocks_off)),
    )


def pairs_of_steps(size: Size, seconds: float) -> tuple[Array, Array, Array, float]:
    """Nanoseconds of neighbouring steps without and with hooks, the kinds of the latter, and the
    sender's microseconds a step."""
    steps = training(size)
    took_ns: dict[bool, list[int]] = {False: [], True: []}
    kinds: list[int] = []
    with memory_ledger(on=False), dpwatch.watch() as probe:
        assert isinstance(probe, Probe)
        for _ in range(WARM_UP):
            next(steps)
        main = probe.steps.main
        gc.disable()  # a collection would fall on one side of a pair
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for watched in (False, True, True, False):
                here.lane = main if watched else None
                if watched:
                    kinds.append(0 if main.sampled_out else 1 + main.measuring)
                    probe.steps._start_ns = time.monotonic_ns()  # as if on all along
                start = time.perf_counter_ns()
                next(steps)
                took_ns[watched].append(time.perf_counter_ns() - start)
            gc.collect(0)
        gc.enable()
        here.lane = main
        sender_us = sending(probe, steps, seconds / 5)
    return np.array(took_ns[False]), np.array(took_ns[True]), np.array(kinds), sender_us


def sending(probe: Probe, steps: Iterator[None], seconds: float) -> float:
    """Microseconds of CPU a step that the sender takes while every step is watched."""
    thread = probe._publisher._thread
    assert thread is not None
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    began_ns, count = time.clock_gettime_ns(clock), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        next(steps)
        count += 1
    return (time.clock_gettime_ns(clock) - began_ns) / 1e3 / count


def starts(pairs: int = 7) -> Start:
    """Processes without and with the probe in turn."""
    off, on = [], []
    for index in range(pairs):
        sides = [("off", off), ("on", on)]
        for side, found in sides if index % 2 else reversed(sides):
            command = [sys.executable, "-c", START, side]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.append([float(word) for word in told.split()])
    seconds, mebibytes = (
        spread([b[i] - a[i] for a, b in zip(off, on, strict=True)]) for i in range(2)
    )
    return Start(seconds, mebibytes, pairs)


class _Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def passing_through(size: Size) -> float:
    """Microseconds a step that its inner modules' calls take longer with hooks in place."""
    module, x = _Nothing(), torch.zeros(1)

    def call() -> float:
        start = time.perf_counter_ns()
        for _ in range(2000):
            module(x)
        return (time.perf_counter_ns() - start) / 2000

    extra = []
    with memory_ledger(on=False):
        for _ in range(15):
            without = call()
            with dpwatch.watch():
                here.lane = None
                call()
                extra.append(call() - without)
    modules = 3 * size.depth + 3  # with the model itself and the criterion
    return statistics.median(extra) / 1e3 * modules


def blocks(size: Size, seconds: float) -> tuple[list[float], list[float]]:
    """Mean nanoseconds of a step in neighbouring blocks without and with a probe."""
    steps = training(size)
    off: list[float] = []
    on: list[float] = []
    watched_block(steps, size.block)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pair = [(off, run_block), (on, watched_block)]
        for times, block in pair if len(off) % 2 else reversed(pair):
            times.append(block(steps, size.block))
    return off, on


def spread(values: list[float]) -> Spread:
    """Median, its distribution-free 95 % interval by order statistics, and quartiles."""
    ordered, n = sorted(values), len(values)
    margin = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - margin)), min(n - 1, int(n / 2 + margin))
    return Spread(
        statistics.median(ordered),
        (ordered[low], ordered[high]),
        (ordered[n // 4], ordered[3 * n // 4]),
        (ordered[0], ordered[-1]),
    )


def spread_of_kinds(extra: Array, kinds: Array) -> Spread:
    """Of what steps cost more, where they are of kinds."""
    pairs, random = len(extra), np.random.default_rng(0)

    def typical(rows: Array) -> float:
        found, kind = extra[rows], kinds[rows]
        each = [np.median(found[kind == k]) * (kind == k).mean() for k in np.unique(kind)]
        return float(sum(each))

    again = [typical(random.integers(0, pairs, pairs)) for _ in range(RESAMPLED)]
    low, high = np.quantile(again, (0.025, 0.975))
    return spread(list(extra))._replace(
        median=typical(np.arange(pairs)), sure=(float(low), float(high))
    )


@contextlib.contextmanager
def memory_ledger(on: bool) -> Iterator[None]:
    """Meanwhile probes start with the ledger, or without."""
    started = probe_module._ledger
    if not on:
        probe_module._ledger = lambda *_: NoLedger()
    try:
        yield
    finally:
        probe_module._ledger = started


@contextlib.contextmanager
def reader() -> Iterator[None]:
    """Meanwhile a process takes in and decodes all that probes send, like a hub."""
    with tempfile.TemporaryDirectory(prefix="dpw") as folder:
        os.environ["DPWATCH_RUNTIME_DIR"] = folder
        place = paths.run_dir("bench")
        process = subprocess.Popen(
            [sys.executable, "-c", READER, str(place.path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            os.environ["DPWATCH_RUN_ID"] = place.run_id
            yield
        finally:
            process.kill()
            process.communicate()


def training(size: Size) -> Iterator[None]:
    """An endless training; each `next` is one step: data, forward, backward, optimizer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(size.depth):
        layers += [nn.Linear(size.width, size.width), nn.GELU(), nn.LayerNorm(size.width)]
    model = nn.Sequential(*layers, nn.Linear(size.width, 10))
    data = torch.utils.data.TensorDataset(
        torch.randn(size.batch * 50, size.width), torch.randint(0, 10, (size.batch * 50,))
    )
    loader = torch.utils.data.DataLoader(data, batch_sampler=_Batches(size.batch, 50))
    optimizer = torch.optim.Adam(model.parameters())
    criterion = nn.CrossEntropyLoss()
    while True:
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()
            yield


class _Batches:
    """Slices in order, so that fetching a batch is not most of a small step."""

    def __init__(self, batch: int, count: int) -> None:
        self._batch, self._count = batch, count

    def __iter__(self) -> Iterator[range]:
        return (range(i * self._batch, (i + 1) * self._batch) for i in range(self._count))

    def __len__(self) -> int:
        return self._count


def run_block(steps: Iterator[None], count: int) -> float:
    """Mean nanoseconds of a step, after a few to warm up."""
    for _ in range(WARM_UP):
        next(steps)
    start = time.perf_counter_ns()
    for _ in range(count):
        next(steps)
    return (time.perf_counter_ns() - start) / count


def watched_block(steps: Iterator[None], count: int) -> float:
    """The same with the probe on."""
    with dpwatch.watch():
        return run_block(steps, count)


if __name__ == "__main__":
    main()
