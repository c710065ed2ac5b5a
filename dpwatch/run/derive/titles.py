"""Makes titles unique among runs with the same title, as in a sweep or repeated jobs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from dpwatch.run.model.snapshot import Run


def with_unique_titles(runs: Sequence[Run]) -> list[Run]:
    """The runs, with pid and start time added to titles that would be the same."""
    titles = Counter((run.title, run.strategy) for run in runs)
    marks: Counter[tuple[str, str]] = Counter()
    found = []
    for run in runs:
        if titles[run.title, run.strategy] > 1:
            mark = _mark(run)
            marks[run.title, mark] += 1
            number = marks[run.title, mark]
            again = f", {number}" if number > 1 else ""
            run = replace(run, title=f"{run.title} ({mark}{again})")
        found.append(run)
    return found


def _mark(run: Run) -> str:
    began = time.strftime("%H:%M:%S", time.localtime(run.began_s))
    pids = {rank.pid for rank in run.ranks}
    return f"pid {pids.pop()}, {began}" if len(pids) == 1 else began
