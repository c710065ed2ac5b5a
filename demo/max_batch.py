"""The largest batch per device that fits into memory under each strategy, found by trying.

A try trains two steps (from the second on the optimizer's state exists) under an enforced limit.
The batch doubles until it no longer fits, then a binary search follows. Memory grows linearly with
a large batch, so a better guess is where the line through two tries that fit meets the capacity.
Whatever the guesses, the search ends only when a batch fits and the next larger one does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import msgspec

import dpwatch
from dpwatch.run.model.largest_batch import DevicePeak, LargestBatch
from dpwatch.trainer.config import ConfigError, TrainConfig, new_run_id
from dpwatch.trainer.forkserver import ForkServer
from dpwatch.trainer.launch import StopSwitch, launch
from dpwatch.trainer.messages import DeviceMemory, Event, RunEnded

SCHEMA = "dpwatch.max_batch/1"
STEPS = 2
DEFAULT_CAPACITY_BYTES = 24 << 20
LARGEST_TRIED = 1 << 16


class SearchError(RuntimeError):
    """A try failed for another reason than memory."""


class StoppedError(RuntimeError):
    """A signal ended the search.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class MaxBatches(msgspec.Struct, frozen=True):
    """The object that `--find-max-batch --json` prints."""

    schema: str
    version: str
    gpus: int
    gpu_mem_bytes: int
    title: str
    strategies: list[LargestBatch]


@dataclass(slots=True, frozen=True)
class Trying:
    """A try has started: its configuration, and the number of samples per device."""

    number: int
    batch: int


@dataclass(slots=True, frozen=True)
class Tried:
    """A try has ended; the result, as a line for a person."""

    said: str


@dataclass(slots=True, frozen=True)
class Found:
    """A configuration's search has ended."""

    number: int
    largest: LargestBatch


News = Trying | Tried | Found
Tell = Callable[[News], None]


@dataclass(kw_only=True, slots=True, frozen=True)
class Attempt:
    """Result of a try: each device's peak, and the device that ran out of memory, "" if it fits."""

    memory: tuple[DeviceMemory, ...] = ()
    oom_device: str | None = ""

    @property
    def fits(self) -> bool:
        """Whether all its steps were done."""
        return self.oom_device == ""

    @property
    def peak_bytes(self) -> int:
        """The highest peak of a device."""
        return max((device.peak_bytes for device in self.memory), default=0)


def _summary(results: list[LargestBatch], configs: list[TrainConfig]) -> MaxBatches:
    """The summary of all strategies, which share devices and model."""
    first = configs[0]
    return MaxBatches(
        schema=SCHEMA,
        version=dpwatch.__version__,
        gpus=first.gpus,
        gpu_mem_bytes=first.gpu_mem_bytes or 0,
        title=first.title,
        strategies=results,
    )


def search(config: TrainConfig, attempt: Callable[[int], Attempt]) -> LargestBatch:
    """Finds a strategy's largest batch.

    Args:
        config: What to train; its own batch is ignored.
        attempt: Trains with that many samples per device.
    """
    fits: dict[int, Attempt] = {}
    refused: dict[int, Attempt] = {}
    while (guess := _next(fits, refused, config.gpu_mem_bytes or 0)) is not None:
        tried = attempt(guess)
        (fits if tried.fits else refused)[guess] = tried
    largest = max(fits, default=0)
    limits = refused.get(largest + 1)
    return LargestBatch(
        strategy=config.strategy,
        batch_per_gpu=largest,
        global_batch=largest * config.gpus * config.grad_accum,
        ran_out=limits.oom_device if limits else None,
        devices=[
            DevicePeak(device.device, device.peak_bytes, device.capacity_bytes)
            for device in (fits[largest].memory if fits else ())
        ],
        tries=len(fits) + len(refused),
    )


def _next(fits: dict[int, Attempt], refused: dict[int, Attempt], capacity: int) -> int | None:
    """The batch to try next, None when the result is known."""
    low, high = max(fits, default=0), min(refused, default=LARGEST_TRIED + 1)
    if low + 1 >= high:
        return None
    furthest = (low + high) // 2 if refused else min(2 * low or 1, high - 1)
    guess = _where_the_line_ends(fits, capacity)
    if guess is None or guess >= high:  # no line yet, or a refused batch contradicts it
        return furthest
    return max(guess, low + 1) if refused else min(max(guess, low + 1), furthest)


def _where_the_line_ends(fits: dict[int, Attempt], capacity: int) -> int | None:
    """The largest batch that fits according to the line through the two largest that did fit."""
    if len(fits) < 2:
        return None
    one, two = sorted(fits)[-2:]
    slope = (fits[two].peak_bytes - fits[one].peak_bytes) / (two - one)
    if slope <= 0:
        return None
    return two + int((capacity - fits[two].peak_bytes) / slope)


@dataclass(slots=True)
class Trier:
    """Tries batches in separate runs, from one warm fork server."""

    config: TrainConfig
    number: int
    server: ForkServer
    stop: StopSwitch
    tell: Tell
    _ended: list[RunEnded] = field(default_factory=list)

    def __call__(self, batch: int) -> Attempt:
        """Trains with `batch` samples per device.

        Raises:
            SearchError: It failed for another reason than memory.
            StoppedError: A signal was received.
        """
        config = replace(self.config, batch_per_gpu=batch, steps=STEPS)
        self._ended.clear()
        self.tell(Trying(self.number, batch))
        try:
            code = launch(
                [config],
                run_ids=[new_run_id(config.strategy)],
                on_event=self._on_message,
                stop=self.stop,
                server=self.server,
            )
        except ConfigError as error:  # the host itself does not have enough memory
            self.tell(Tried(f"{config.strategy}: {error}"))
            return Attempt(oom_device=None)
        if self.stop.signum is not None:
            raise StoppedError(self.stop.signum)
        ended = self._ended[-1]
        if code and not ended.oom_device:
            raise SearchError(f"{config.strategy}, batch {batch} a device: {ended.reason}")
        said = f"{ended.oom_device} runs out" if ended.oom_device else "fits"
        self.tell(Tried(f"{config.strategy}: batch {batch} a device {said}"))
        return Attempt(memory=ended.memory, oom_device=ended.oom_device)

    def _on_message(self, event: Event) -> None:
        if isinstance(event, RunEnded):
            self._ended.append(event)


def find_all(configs: list[TrainConfig], tell: Tell) -> MaxBatches:
    """The largest batch of each configuration; Ctrl-C and SIGTERM end the search.

    Args:
        configs: One per strategy, each with `gpu_mem_bytes`.
        tell: Called for each try, and with each configuration's result.

    Raises:
        SearchError: A try failed for another reason than memory.
        StoppedError: A signal was received.
    """
    stop = StopSwitch()
    try:
        with stop.on_signals(), _unwatched(), ForkServer() as server:
            found = []
            for number, config in enumerate(configs):
                found.append(search(config, Trier(config, number, server, stop, tell)))
                tell(Found(number, found[-1]))
    finally:
        stop.close()
    return _summary(found, configs)


@contextmanager
def _unwatched() -> Iterator[None]:
    """Sets `DPWATCH=0` for the ranks: a try of two steps needs no dashboard and no hub."""
    before = os.environ.get("DPWATCH")
    os.environ["DPWATCH"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DPWATCH"]
        else:
            os.environ["DPWATCH"] = before
