"""Messages from a rank to its launcher, and from a launcher to its caller. Torch-free."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass

from .config import TrainConfig


@dataclass(kw_only=True, slots=True, frozen=True)
class Job:
    """What one rank has to do: everything its new process needs.

    Attributes:
        config: What to train.
        run_id: The run it belongs to.
        rank: Its number, 0 … world_size − 1.
        world_size: Processes of the run, all on this host.
        store_port: Loopback port of the process group's store on rank 0, 0 without a group.
        environment: Variables to set (the launcher's own may have changed since the server
            started).
        prints: Whether it prints its progress, instead of the launcher for all.
    """

    config: TrainConfig
    run_id: str
    rank: int
    world_size: int
    store_port: int
    environment: dict[str, str]
    prints: bool = False


@dataclass(slots=True, frozen=True)
class Progress:
    """A rank's progress: steps done, last loss, samples per second of the run."""

    step: int
    loss: float
    samples_per_s: float


@dataclass(slots=True, frozen=True)
class DeviceMemory:
    """Peak memory of a device with a limit.

    Attributes:
        device: Its name, such as `vgpu:0`.
        peak_bytes: The most bytes in use at one moment.
        capacity_bytes: Its size, None for no limit of its own.
    """

    device: str
    peak_bytes: int
    capacity_bytes: int | None


@dataclass(slots=True, frozen=True)
class Finished:
    """A rank did all its steps. `memory` has its devices if they are limited."""

    memory: tuple[DeviceMemory, ...] = ()


@dataclass(slots=True, frozen=True)
class Stopped:
    """A rank was stopped early by that signal."""

    signum: int


@dataclass(slots=True, frozen=True)
class Failed:
    """A rank raised.

    Attributes:
        reason: One line for a person.
        trace: The whole traceback.
        at_ns: When, on this host's CLOCK_MONOTONIC: the first failure causes the others.
        memory: Its devices, if they are limited.
        oom_device: The device that ran out of memory, "" if that was not the cause.
    """

    reason: str
    trace: str
    at_ns: int
    memory: tuple[DeviceMemory, ...] = ()
    oom_device: str = ""


End = Finished | Stopped | Failed
RankMessage = Progress | End


@dataclass(slots=True, frozen=True)
class RunStarted:
    """All ranks of a run have been started."""

    run_id: str
    config: TrainConfig
    pids: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class RunProgress:
    """Rank 0's progress."""

    run_id: str
    config: TrainConfig
    progress: Progress


@dataclass(slots=True, frozen=True)
class RunEnded:
    """All ranks of a run have exited.

    Attributes:
        exit_code: 0 finished; 1 failed; 128 + n stopped by signal n.
        reason: One line for a person, "" when finished or stopped.
        trace: The failed rank's traceback, "" without one.
        memory: All devices, if they are limited and their ranks could report.
        oom_device: The device that ran out of memory first, "" if that was not the cause.
    """

    run_id: str
    config: TrainConfig
    exit_code: int
    reason: str = ""
    trace: str = ""
    memory: tuple[DeviceMemory, ...] = ()
    oom_device: str = ""


Event = RunStarted | RunProgress | RunEnded


def failed(
    error: BaseException, memory: tuple[DeviceMemory, ...] = (), oom_device: str = ""
) -> Failed:
    """The message for an exception: its first line, and the traceback."""
    trace = "".join(traceback.format_exception(error))
    return Failed(one_line(error), trace, time.monotonic_ns(), memory, oom_device)


def one_line(error: BaseException) -> str:
    """An exception in one line, such as `RuntimeError: shapes differ`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def debugging() -> bool:
    """Whether tracebacks are enabled: DPWATCH_DEBUG=1."""
    return os.environ.get("DPWATCH_DEBUG", "") not in ("", "0")
