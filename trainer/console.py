"""Console output of the trainer's commands: progress on stdout, errors in one line on stderr."""

from __future__ import annotations

import sys

from .config import TrainConfig
from .messages import Event, Progress, RunEnded, RunProgress, debugging


def print_event(event: Event) -> None:
    """Prints progress, and the error of a run that failed."""
    if isinstance(event, RunProgress):
        print_progress(event.config, event.progress)
    print_end(event)


def print_end(event: Event) -> None:
    """Prints the error of a run that failed."""
    if isinstance(event, RunEnded) and event.reason:
        print_error(event.reason, event.trace)


def print_progress(config: TrainConfig, progress: Progress) -> None:
    """Prints a run's progress."""
    steps = "" if config.steps is None else f"/{config.steps}"
    print(  # noqa: T201
        f"{config.strategy:<6} step {progress.step}{steps}  loss {progress.loss:.3f}  "
        f"{progress.samples_per_s:,.0f} samples/s",
        flush=True,
    )


def print_error(text: str, trace: str = "") -> None:
    """Prints an error, with DPWATCH_DEBUG=1 after its traceback."""
    if trace and debugging():
        print(trace, file=sys.stderr, end="")  # noqa: T201
    print(f"dpwatch.trainer: {text}", file=sys.stderr, flush=True)  # noqa: T201
