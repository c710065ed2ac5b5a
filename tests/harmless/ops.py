"""The `ops` part: torch's samples, over processes with the probe and without."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.harmless.differences import explain
from tests.harmless.parallel import in_order
from tests.harmless.rows import DIFFERS, SAME, VARIES, Report, Row, wanted
from tests.harmless.step_kinds import KINDS

ROOT = Path(__file__).parents[2]
SILENCE_S = 300.0
"""A worker that says nothing for so long hangs in the case that it began last."""

SHARD = 170
"""Cases that a process takes, which needs some seconds to start."""

AT_MOST = 10
"""Runs without the probe that a case which differs gets while these agree, with their memory at
other places each time: `linalg.lstsq` depends on that."""

QUICK_EVERY = 80
QUICK_OPS = frozenset({
    "prod", "masked.prod", "masked_fill", "linalg.pinv", "linalg.eigvalsh", "ormqr",
    "nn.functional.dropout", "nn.functional.linear",
    "nn.functional.scaled_dot_product_attention", "index_put", "matmul", "sort", "svd",
    "optim.Adam", "optim.SGD", "optim.LBFGS", "nn.Linear", "nn.LSTM", "_foreach_add",
})  # fmt: skip
"""Operators that dispatch modes have been seen to change, and those that scripts use most."""

Results = dict[str, dict[str, Any]]


def run(report: Report, patterns: Sequence[str], *, quick: bool, jobs: int) -> None:
    """Compares all cases that are wanted, and adds a row for each."""
    names = [name for name in _names() if wanted(f"ops/{name}", patterns)]
    if quick:
        names = [n for i, n in enumerate(names) if not i % QUICK_EVERY or _operator(n) in QUICK_OPS]
    count = max(jobs, -(-len(names) // SHARD))
    shards = [shard for at in range(count) if (shard := names[at::count])]
    sampled = done = 0
    for rows, with_memory in in_order(_compare, shards, jobs):
        for row in rows:
            report.add(row)
        sampled += with_memory
        done += len(rows)
        print(f"ops: {done} of {len(names)} rows compared", file=sys.stderr, flush=True)
    if names:
        print(f"ops: memory was sampled in the sampled step of {sampled} of {len(names)} rows")


def _compare(names: Sequence[str]) -> tuple[list[Row], int]:
    """Rows of some cases, and in how many of them memory was sampled."""
    plain, probed = _results("plain", names), _results("probed", names)
    differ = [name for name in names if _compared(plain[name]) != _compared(probed[name])]
    rows = dict(zip(differ, _look_closer(differ, plain), strict=True))
    for name in names:
        if name not in rows:
            rows[name] = Row(name=f"ops/{name}", verdict=SAME, note=_count(plain[name]))
    return list(rows.values()), sum(bool(probed[name].get("memory_sampled")) for name in names)


def _names() -> list[str]:
    """All cases' names, asked of a process so that this one need not import torch."""
    code = "from tests.harmless.op_cases import all_cases as a; print(*(c.name for c in a()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def _operator(name: str) -> str:
    return name.rpartition("/")[0]


def _compared(told: dict[str, Any]) -> Any:
    return [told.get(key) for key in (*KINDS, "failed")]


def _count(told: dict[str, Any]) -> str:
    return f"{sum(len(told.get(kind, ())) for kind in KINDS)} samples"


def _look_closer(names: Sequence[str], first: Results) -> list[Row]:
    """Of what differed, whether it does without the probe too; if not, the difference.

    Args:
        names: Cases that differed.
        first: Results of the first run without the probe.
    """
    varies: dict[str, Row] = {}
    for places in range(1, AT_MOST):
        left = [name for name in names if name not in varies and not first[name].get("failed")]
        if not left:
            break
        for name, again in _results("plain", left, "digests", places).items():
            if different := _count_different(first[name], again):
                note = f"{different} of {_count(again)} differ without the probe too"
                varies[name] = Row(name=f"ops/{name}", verdict=VARIES, note=note)
    left = [name for name in names if name not in varies]
    plain = _results("plain", left, "details")
    probed = _results("probed", left, "details")
    return [varies.get(name) or _row(name, plain[name], probed[name]) for name in names]


def _count_different(one: dict[str, Any], other: dict[str, Any]) -> int:
    if "failed" in other:
        return 0
    return sum(a != b for kind in KINDS for a, b in zip(one[kind], other[kind], strict=True))


def _row(name: str, plain: dict[str, Any], probed: dict[str, Any]) -> Row:
    if "failed" in probed or "failed" in plain:
        told = probed.get("failed") or "only without the probe"
        return Row(name=f"ops/{name}", verdict=DIFFERS, note=str(told))
    detail = [
        f"{kind} step, sample {number}: {explain(theirs, ours)}"
        for kind in KINDS
        for number, (theirs, ours) in enumerate(zip(plain[kind], probed[kind], strict=True))
        if theirs != ours
    ]
    note = f"{len(detail)} of {_count(probed)}" if detail else "once, and not when run again"
    return Row(name=f"ops/{name}", verdict=DIFFERS, note=note, detail=tuple(detail[:3]))


# -- processes ------------------------------------------------------------------------------------


def _results(mode: str, names: Sequence[str], depth: str = "digests", places: int = 0) -> Results:
    """Runs cases in processes of their own; one that kills its process is told as failed."""
    found: Results = {}
    left = list(names)
    while left:
        begun = ""
        for line in _lines(mode, left, depth, places):
            told = json.loads(line)
            begun = told.get("begins", "")
            if not begun:
                found[told["name"]] = told
        broken = begun or next((name for name in left if name not in found), "")
        if broken:
            found[broken] = {"name": broken, "failed": "the process crashed or hung"}
        left = [name for name in left if name not in found]
    return found


def _lines(mode: str, names: Sequence[str], depth: str, places: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="dpwatch-harmless-") as runtime:
        # Some of torch's samples are made from sets of strings, in an order that hashes make.
        same = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        env = {**os.environ, **same, "DPWATCH_RUNTIME_DIR": runtime}
        with subprocess.Popen(
            [sys.executable, "-m", "tests.harmless.op_worker", mode, depth, str(places)],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n".join(names).encode())
            process.stdin.close()
            try:
                yield from _read(process.stdout.fileno())
            finally:
                process.kill()


def _read(descriptor: int) -> Iterator[str]:
    """Whole lines until the end, or until nothing has come for too long."""
    kept = b""
    while select.select([descriptor], [], [], SILENCE_S)[0]:
        read = os.read(descriptor, 1 << 20)
        if not read:
            return
        *whole, kept = (kept + read).split(b"\n")
        yield from (line.decode() for line in whole)
