"""`python -m dpwatch.demo.figures FILE`: inserts measured figures into a document.

It trains every strategy as `dpwatch demo --strategy all` does, and writes each one's table between
`<!-- figures: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dpwatch.cli.markdown import markdown, table
from dpwatch.run.model.snapshot import Rank, Run, TransferStats
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.registry import known_names

from .session import Session

GPUS = 4
STEPS = 60
_BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HELD = ("params", "grads", "optimizer", "buffers")


def main(file: Path) -> int:
    """Trains, and writes the figures into the file; returns the training's exit code."""
    configs = [TrainConfig(strategy=name, gpus=GPUS, steps=STEPS) for name in known_names()]
    with Session(configs) as session:
        code = session.wait()
        runs = session.runs()
        if code:
            sys.exit(session.error or "the training failed")
    blocks = {run.strategy: _of_one(run) for run in runs}
    blocks["all"] = markdown(runs)
    text = file.read_text(encoding="utf-8")
    file.write_text(_BLOCK.sub(lambda m: f"{m[1]}\n{blocks[m[2]]}\n\n{m[3]}", text), "utf-8")
    return 0


def _of_one(run: Run) -> str:
    """What a run's devices hold and send, and with which operations."""
    held = table(
        ["device", *(f"{name} B" for name in _HELD), "peak B", "sent B/step", "received B/step"],
        [_device(row) for row in _distinct(run.ranks)],
    )
    moves = [
        [f"{c.op}, group of {c.ranks}", f"{c.count_per_step:g}", _count(c.bytes_per_step)]
        for c in run.collectives
        if c.bytes_per_step
    ]
    moves += _copies(run)
    moved = (
        table(["a step moves", "calls or routes", "payload B"], moves)
        if moves
        else ["It sends nothing."]
    )
    return "\n".join([*held, "", *moved])


def _copies(run: Run) -> list[list[str]]:
    """One row per kind of copy: the number of its routes, and the bytes on all of them."""
    kinds = dict.fromkeys(each.kind for each in run.transfers)
    rows = []
    for kind in kinds:
        routes = [each for each in run.transfers if each.kind == kind]
        sources, targets = ({getattr(r, end) for r in routes} for end in ("src", "dst"))
        between = f"{_one_or_many(sources)} → {_one_or_many(targets)}"
        rows.append([f"{kind}, {between}", str(len(routes)), _count(_total(routes))])
    return rows


def _one_or_many(devices: set[str]) -> str:
    return next(iter(devices)) if len(devices) == 1 else f"{len(devices)} devices"


def _total(routes: Sequence[TransferStats]) -> int:
    return sum(route.bytes_per_step for route in routes)


def _distinct(rows: Sequence[Rank]) -> list[Rank]:
    """Device 0, and each other device that differs from the one before."""
    kept: list[Rank] = []
    for row in rows:
        if not kept or _device(row)[1:] != _device(kept[-1])[1:]:
            kept.append(row)
    return kept


def _device(row: Rank) -> list[str]:
    memory = row.memory
    figures = (
        *(getattr(memory.at_step_end, name) for name in _HELD),
        memory.peak_bytes,
        row.sent_bytes_per_step,
        row.received_bytes_per_step,
    )
    return [row.device, *(_count(figure) for figure in figures)]


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dpwatch.demo.figures FILE")
    sys.exit(main(Path(sys.argv[1])))
