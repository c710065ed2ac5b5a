"""The training loop: build, train, close."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from dpwatch.probe.api import ProbeLike

from .checkpoint import Checkpoints
from .config import TrainConfig
from .data import loader
from .fault_injection import FaultInjector
from .rank_place import RankPlace
from .strategies import build

PROGRESS_S = 1.0
"""Minimum interval between a rank's progress reports."""

Progress = Callable[[int, float, float], None]
"""Takes steps done, the last step's loss, and the run's samples per second since the last call."""


def train(
    config: TrainConfig,
    place: RankPlace,
    probe: ProbeLike,
    *,
    progress: Progress,
    stopping: Callable[[], bool],
) -> int:
    """Trains `config.steps` steps, or until `stopping()`.

    Args:
        config: What to train.
        place: This rank.
        probe: Receives what its hooks cannot detect.
        progress: Called after the first step, about every second, and after the last.
        stopping: Called between steps.

    Returns:
        Steps done, including those before the checkpoint it resumed from.
    """
    told_s = time.monotonic()
    with (
        FaultInjector(config, place, probe) as faults,
        closing(build(config, place, faults.probe)) as strategy,
    ):
        checkpoints = Checkpoints(config, place)
        done = told = first = checkpoints.resume(strategy)
        batches = loader(config, rank=place.rank, ranks=place.world_size, first=first)
        for tokens in faults.steps(batches):
            loss = strategy.step(tokens)
            done += 1
            now_s = time.monotonic()
            if done == first + 1 or done == config.steps or now_s - told_s >= PROGRESS_S:
                progress(done, loss.item(), (done - told) * config.batch / (now_s - told_s))
                told, told_s = done, now_s
            del loss  # or the next step's memory would include it
            checkpoints.after(done, strategy)
            if stopping():
                break
    return done
