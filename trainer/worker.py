"""One rank: joins its process group, starts the probe, trains, and reports how it ended.

It runs forked from the launcher's server, with a pipe for messages and a store for its run, or
under torchrun, with the environment's store and the terminal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType

import torch
import torch.distributed as dist

import dpwatch
from dpwatch.probe.api import ProbeLike

from .config import TrainConfig, require
from .console import print_progress
from .loop import train
from .memory_limit import DeviceLimit, NoLimit, limit_memory
from .messages import End, Failed, Finished, Job, Progress, RankMessage, Stopped, failed
from .rank_place import RankPlace, find_rank_place
from .strategies import check

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

Tell = Callable[[RankMessage], None]


class PortInUseError(RuntimeError):
    """The ranks' store cannot listen; the message says what to do."""


class StopFlag:
    """Set by SIGTERM and SIGINT; the loop checks it between steps, so no step is cut short."""

    def __init__(self) -> None:
        self.signum: int | None = None
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._set)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def __call__(self) -> bool:
        """Whether it is set."""
        return self.signum is not None


def run_forked(job: Job, handles: list[int]) -> int:
    """The body of a rank that the fork server started.

    Args:
        job: What to do.
        handles: The pipe to the launcher, to write to; for rank 0 of a group also the listening
            socket of its store.

    Returns:
        The process's exit code.
    """
    pipe: Connection[RankMessage, None] = Connection(handles[0], readable=False)

    def tell(message: RankMessage) -> None:
        with contextlib.suppress(OSError):  # the launcher has exited; this process will be killed
            pipe.send(message)

    def join(backend: str) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1",
            job.store_port,
            job.world_size,
            is_master=job.rank == 0,
            wait_for_workers=False,
            master_listen_fd=handles[1] if job.rank == 0 else None,
            use_libuv=False,  # with libuv, torch 2.6 cannot listen on a given socket
        )
        dist.init_process_group(backend, store=store, rank=job.rank, world_size=job.world_size)

    os.environ.update(job.environment)
    os.environ.update(
        RANK=str(job.rank),
        LOCAL_RANK=str(job.rank),
        WORLD_SIZE=str(job.world_size),
        LOCAL_WORLD_SIZE=str(job.world_size),
    )
    return _run_rank(job.config, join, tell, prints=job.prints)


def run_under_torchrun(config: TrainConfig, tell: Tell) -> int:
    """The body of a rank that torchrun started; its place is in the environment.

    Returns:
        The process's exit code.
    """
    return _run_rank(config, _join_from_environment, tell)


def _join_from_environment(backend: str) -> None:
    try:
        dist.init_process_group(backend)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT", "?")
        raise PortInUseError(
            f"port {port} is in use on this host; give torchrun another one with --master-port, "
            "or --standalone, which finds a free one"
        ) from None


def _run_rank(
    config: TrainConfig, join: Callable[[str], object], tell: Tell, *, prints: bool = False
) -> int:
    """Trains, and reports the end before any teardown: peers fail once this rank is gone."""
    stop = StopFlag()
    torch.set_num_threads(1)
    probe: ProbeLike | None = None
    limit: DeviceLimit = NoLimit()
    try:
        place = _place_from_environment(config)
        check(config, place)
        limit = limit_memory(config, place)
        probe = _watch(config, place)
        if require(config.strategy).distributed:
            join("gloo" if place.virtual else "nccl")
        told = limit.wrap_probe(probe)
        progress = _progress(config, place, tell, prints=prints)
        done = train(config, place, told, progress=progress, stopping=stop)
    except Exception as error:  # noqa: BLE001 - the launcher reports it in one line
        end: End = Stopped(stop.signum) if stop.signum else _failure(error, limit)
        done = None
        if prints and isinstance(end, Failed):
            with contextlib.suppress(OSError):
                print(end.trace, file=sys.stderr, end="", flush=True)  # noqa: T201
    else:
        finished = stop.signum is None or done == config.steps
        end = Finished(limit.report()) if finished else Stopped(stop.signum or 0)
    limit.close()
    tell(end)
    _close(probe, config, end, done)
    if isinstance(end, Failed):
        return 1
    return 0 if isinstance(end, Finished) else 128 + end.signum


def _failure(error: Exception, limit: DeviceLimit) -> Failed:
    return failed(error, limit.report(), limit.oom_device(error))


def _watch(config: TrainConfig, place: RankPlace) -> ProbeLike:
    return dpwatch.watch(
        strategy=config.strategy,
        title=place.title(config),
        devices=place.describe(config),
        total_steps=config.steps,
    )


def _place_from_environment(config: TrainConfig) -> RankPlace:
    rank, world_size, local_rank, local_ranks = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    return find_rank_place(
        config,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_ranks=local_ranks,
    )


def _progress(
    config: TrainConfig, place: RankPlace, tell: Tell, *, prints: bool
) -> Callable[[int, float, float], None]:
    def progress(step: int, loss: float, samples_per_s: float) -> None:
        now = Progress(step, loss, samples_per_s)
        if prints:
            print_progress(config, now)
        if place.rank == 0:
            tell(now)

    return progress


def _close(probe: ProbeLike | None, config: TrainConfig, end: End, done: int | None) -> None:
    """Closes the probe, and leaves the group once all ranks have done their steps."""
    if probe is not None:
        if isinstance(end, Failed):
            probe.close("failed", end.reason)
        elif isinstance(end, Stopped) and config.steps is not None:
            at = "" if done is None else f" after step {done} of {config.steps}"
            probe.close("failed", f"stopped by {signal.Signals(end.signum).name}{at}")
        else:
            probe.close()
    if isinstance(end, Finished) and dist.is_initialized():
        dist.barrier()  # a peer may still be receiving from this rank
        dist.destroy_process_group()
