"""Runs with the same title, told apart: a sweep's, or one job after another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from dpwatch.hub.snapshot import Run


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, with pid and time in the titles of those that would look the same."""
    titles = Counter((run.title, run.strategy) for run in runs)
    return [
        replace(run, title=f"{run.title} ({_mark(run)})")
        if titles[run.title, run.strategy] > 1
        else run
        for run in runs
    ]


def _mark(run: Run) -> str:
    began = time.strftime("%H:%M:%S", time.localtime(run.began_s))
    pids = {rank.pid for rank in run.ranks}
    return f"pid {pids.pop()}, {began}" if len(pids) == 1 else began
