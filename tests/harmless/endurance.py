"""The `long` part: 100,000 steps in a process, a probe opened and closed 500 times, 200 forks.

What a process holds is measured again and again, and must not grow: memory, descriptors, threads,
and the probe's own structures. After `close()` nothing of the probe is left in the process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harmless.parallel import in_order
from tests.harmless.rows import DIFFERS, SAME, Report, Row, wanted
from tests.harmless.script_run import wait_for_end_of_hubs

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 3600
KINDS = {"steps": (100_000, 10_000), "reopen": (500, 20), "fork": (200, 40)}
"""How often, in full and in CI."""

ALLOWED = {
    "allocated_bytes": 512 << 10,
    "resident_bytes": 8 << 20,
    "python_blocks": 4_000,
    "descriptors": 0,
    "threads": 0,
    "children": 0,
    "probe_objects": 2_000,
}
"""By how much a figure may be higher at the end than when everything had been filled once."""


FORK_RATIO = 2.0
"""A fork may take so many times as long; it is measured in turn, so noise falls on both."""


def run(report: Report, patterns: Sequence[str], *, quick: bool, jobs: int) -> None:
    """Adds a row for each figure of each kind."""
    kinds = [
        kind
        for kind in KINDS
        if wanted(f"long/{kind}", patterns) or any(p.startswith(f"long/{kind}") for p in patterns)
    ]

    def figures(kind: str) -> list[Row]:
        full, part = KINDS[kind]
        return _rows(kind, _told(kind, part if quick else full))

    for rows in in_order(figures, kinds, jobs):
        for row in rows:
            report.add(row)


def _told(kind: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dpw-") as folder:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DPWATCH_RUNTIME_DIR": f"{folder}/rt",
            "DPWATCH_RUN_ID": "long",
            "DPWATCH_HUB_LINGER_S": "3",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.harmless.endurance_process", kind, str(count)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        wait_for_end_of_hubs(Path(folder))  # which would make the folder again
    if done.returncode:
        return {"failed": done.stderr[-2000:] or f"exit code {done.returncode}"}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _rows(kind: str, told: dict[str, Any]) -> list[Row]:
    if "failed" in told:
        lines = tuple(told["failed"].splitlines()[-12:])
        return [Row(name=f"long/{kind}", verdict=DIFFERS, note="failed", detail=lines)]
    if kind == "fork":
        return [_forks(told["figures"])]
    rows = [_growth(kind, name, told["figures"]) for name in ALLOWED]
    for name, wrong in told["left"].items():
        verdict = DIFFERS if wrong else SAME
        rows.append(Row(name=f"long/{kind}/{name}", verdict=verdict, note=", ".join(wrong)))
    return rows


def _forks(figures: dict[str, list[float]]) -> Row:
    """Compares how long a fork takes, until its child has ended."""
    without, with_it = (statistics.median(figures[kind]) for kind in ("without", "with"))
    ratio = with_it / without
    return Row(
        name="long/fork",
        verdict=DIFFERS if ratio > FORK_RATIO else SAME,
        note=f"{ratio:.2f} times as long ({without:.1f} ms without, {with_it:.1f} ms with)",
    )


def _growth(kind: str, name: str, figures: list[dict[str, int]]) -> Row:
    """Compares the end with the first figure after the warm-up."""
    series = [each[name] for each in figures]
    grown = series[-1] - series[0]
    return Row(
        name=f"long/{kind}/{name}",
        verdict=DIFFERS if grown > ALLOWED[name] else SAME,
        note=f"{grown:+,} from {series[0]:,} (at most {ALLOWED[name]:+,})",
        detail=(" ".join(f"{n:,}" for n in series),) if grown > ALLOWED[name] else (),
    )
