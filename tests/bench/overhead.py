"""What the probe costs a training step: paired, alternating, in one run.

    python tests/bench/overhead.py [--seconds S] [--json]

Identical steps of a small real training run without and with the probe in turn, so that the
machine's drift falls on both. Two comparisons, for steps of about 1 ms and about 20 ms:

- `hooks`: rounds of steps (of which the probe looks at two and counts the others) in the order
  off, on, on, off. A pair's cost is the difference of two neighbouring rounds, so even a noisy
  machine resolves microseconds. Off is a thread without a lane, whose calls pass straight through
  the hooks (taking them out would empty the interpreter's caches and slow the next step down); what
  passing through costs is measured by itself and added. The sender thread runs beside both, so its
  CPU time per step is added too: `sender`, the most that it could take from the training thread by
  sharing the GIL with it.
- `blocks`: blocks of steps without a probe and with one, started and closed, everything in it: the
  sender, and the sampled memory ledger. Mean step against mean step: unbiased, but a noisy machine
  leaves it wide.
- `start`: whole processes that import torch, train a few steps and end, without the probe and with
  it: seconds to the end of the first step, and resident memory after the last.

A separate process reads what is sent, as a hub would. Each figure is the median over the pairs with
its 95 % confidence interval, the middle half and the whole range.
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
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import dpwatch
from dpwatch.probe import probe as probe_module
from dpwatch.probe.lanes import here
from dpwatch.probe.probe import Probe
from dpwatch.probe.seams import NoLedger
from dpwatch.probe.steps import SHORT_STEP_EVERY, TINY_STRIDE
from dpwatch.wire import paths

READER = """
import sys, zmq
from dpwatch.wire import codec, transport
from dpwatch.wire.paths import RunDir
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
    """A training step's shape, how many the probe takes as one round, and how many make a block."""

    name: str
    width: int
    depth: int
    batch: int
    round: int
    block: int


SIZES = (
    Size("1 ms", 96, 1, 32, TINY_STRIDE, 300),
    Size("20 ms", 512, 6, 96, SHORT_STEP_EVERY, 25),
)
WARM_UP = 25


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
        pairs: Of rounds of steps, of blocks.
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
        rounds, blocks = cost.pairs
        out(
            f"{cost.name}: step {cost.step_us:.0f} µs; hooks {_said(cost.hooks_us, 'µs', 1)} over"
            f" {rounds} pairs, passing through {cost.through_us:.1f} µs,"
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
    off, on, sender_us = rounds_of_steps(size, seconds)
    plain_us = statistics.median(off) / 1e3
    hooks = spread([(b - a) / 1e3 for a, b in zip(off, on, strict=True)])
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


def rounds_of_steps(size: Size, seconds: float) -> tuple[list[float], list[float], float]:
    """Nanoseconds a step in neighbouring rounds without and with hooks; the sender's µs a step."""
    steps = training(size)
    off: list[float] = []
    on: list[float] = []
    with memory_ledger(on=False), dpwatch.watch() as probe:
        assert isinstance(probe, Probe)
        for _ in range(WARM_UP):
            next(steps)
        sender = time.pthread_getcpuclockid(probe._publisher._thread.ident)
        sent = time.clock_gettime_ns(sender)
        until = time.monotonic() + seconds
        gc.disable()  # a collection would fall on one side of a pair
        while time.monotonic() < until:
            for watched in (False, True, True, False):
                here.lane = probe.steps.main if watched else None
                probe.steps._start_ns = start = time.perf_counter_ns()  # as if on all along
                for _ in range(size.round):
                    next(steps)
                took_ns = (time.perf_counter_ns() - start) / size.round
                (on if watched else off).append(took_ns)
            gc.collect(0)
        gc.enable()
        here.lane = probe.steps.main
        # Only every other round is recorded, so the sender had half of them to send.
        sender_us = (time.clock_gettime_ns(sender) - sent) / 1e3 / (len(on) * size.round)
    return off, on, sender_us


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
