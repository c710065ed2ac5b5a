"""The largest batch per device that fits into memory under each strategy, found by trying.

A try trains two steps (from the second on the optimizer's state is there) under an enforced limit.
The batch doubles until it no longer fits, and from then on halves what is in between. Memory grows
with a large batch along a line, so where the line through two tries that fit meets the capacity
is a better guess. Whatever the guesses, it only ends when a batch fits and the next larger one
does not.
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
    """A try failed of something else than memory."""


class StoppedError(RuntimeError):
    """A signal ended the search.

    Attributes:
        signum: Which.
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
    """A try has begun: which configuration, and with how many samples a device."""

    number: int
    batch: int


@dataclass(slots=True, frozen=True)
class Tried:
    """A try has ended; how, in a line for a person."""

    said: str


@dataclass(slots=True, frozen=True)
class Found:
    """A configuration's search is over."""

    number: int
    largest: LargestBatch


News = Trying | Tried | Found
Tell = Callable[[News], None]


@dataclass(kw_only=True, slots=True, frozen=True)
class Attempt:
    """How a try ended: each device's peak, and which one lacked memory, "" where it fits."""

    memory: tuple[DeviceMemory, ...] = ()
    ran_out: str | None = ""

    @property
    def fits(self) -> bool:
        """Whether all its steps were done."""
        return self.ran_out == ""

    @property
    def peak_bytes(self) -> int:
        """The fullest device's."""
        return max((device.peak_bytes for device in self.memory), default=0)


def _summary(results: list[LargestBatch], configs: list[TrainConfig]) -> MaxBatches:
    """The object over all strategies, which share devices and model."""
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
        config: What to train; its own batch doesn't matter.
        attempt: Trains with so many samples a device.
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
        ran_out=limits.ran_out if limits else None,
        devices=[
            DevicePeak(device.device, device.peak_bytes, device.capacity_bytes)
            for device in (fits[largest].memory if fits else ())
        ],
        tries=len(fits) + len(refused),
    )


def _next(fits: dict[int, Attempt], refused: dict[int, Attempt], capacity: int) -> int | None:
    """The batch to try next, None when there is nothing left to find out."""
    low, high = max(fits, default=0), min(refused, default=LARGEST_TRIED + 1)
    if low + 1 >= high:
        return None
    furthest = (low + high) // 2 if refused else min(2 * low or 1, high - 1)
    guess = _where_the_line_ends(fits, capacity)
    if guess is None or guess >= high:  # no line yet, or what was refused says it is none
        return furthest
    return max(guess, low + 1) if refused else min(max(guess, low + 1), furthest)


def _where_the_line_ends(fits: dict[int, Attempt], capacity: int) -> int | None:
    """The largest batch below the capacity on the line through the two largest that fit."""
    if len(fits) < 2:
        return None
    one, two = sorted(fits)[-2:]
    slope = (fits[two].peak_bytes - fits[one].peak_bytes) / (two - one)
    if slope <= 0:
        return None
    return two + int((capacity - fits[two].peak_bytes) / slope)


@dataclass(slots=True)
class Trier:
    """Tries batches in runs of their own, from one warm fork server."""

    config: TrainConfig
    number: int
    server: ForkServer
    stop: StopSwitch
    tell: Tell
    _ended: list[RunEnded] = field(default_factory=list)

    def __call__(self, batch: int) -> Attempt:
        """Trains with `batch` samples a device.

        Raises:
            SearchError: It failed of something else.
            StoppedError: A signal came.
        """
        config = replace(self.config, batch_per_gpu=batch, steps=STEPS)
        self._ended.clear()
        self.tell(Trying(self.number, batch))
        try:
            code = launch(
                [config],
                run_ids=[new_run_id(config.strategy)],
                on_event=self._hear,
                stop=self.stop,
                server=self.server,
            )
        except ConfigError as error:  # the host itself has not that much memory
            self.tell(Tried(f"{config.strategy}: {error}"))
            return Attempt(ran_out=None)
        if self.stop.signum is not None:
            raise StoppedError(self.stop.signum)
        ended = self._ended[-1]
        if code and not ended.ran_out:
            raise SearchError(f"{config.strategy}, batch {batch} a device: {ended.reason}")
        said = f"{ended.ran_out} runs out" if ended.ran_out else "fits"
        self.tell(Tried(f"{config.strategy}: batch {batch} a device {said}"))
        return Attempt(memory=ended.memory, ran_out=ended.ran_out)

    def _hear(self, event: Event) -> None:
        if isinstance(event, RunEnded):
            self._ended.append(event)


def find_all(configs: list[TrainConfig], tell: Tell) -> MaxBatches:
    """The largest batch of each configuration; Ctrl-C and SIGTERM end the search.

    Args:
        configs: One a strategy, each with `gpu_mem_bytes`.
        tell: Told of each try, and of what was found for each configuration.

    Raises:
        SearchError: A try failed of something else than memory.
        StoppedError: A signal came.
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
    """Ranks take `DPWATCH` from here: a try of two steps is nothing to watch, and needs no hub."""
    before = os.environ.get("DPWATCH")
    os.environ["DPWATCH"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DPWATCH"]
        else:
            os.environ["DPWATCH"] = before
