"""The dashboard over snapshots that lie ready, so that what it costs is the drawing alone.

python -m tests.bench.canned RANKS
"""

from __future__ import annotations

import random
import sys
import time

from msgspec.structs import replace

from dpwatch.run.model import snapshot as s
from dpwatch.tui.app import DashboardApp

MOMENTS = 8
MIB = 1 << 20


class Canned:
    """A source that goes round its snapshots; all figures of all ranks differ in each."""

    interval_s = 0.25

    def __init__(self, ranks: int) -> None:
        dice = random.Random(1)
        self._moments = [_moment(ranks, dice) for _ in range(MOMENTS)]
        self._count = 0
        self._due = time.monotonic()

    def next(self, timeout_s: float) -> s.Snapshot | None:
        """See `SnapshotSource`."""
        left = self._due - time.monotonic()
        time.sleep(max(min(left, timeout_s), 0))
        if left > timeout_s:
            return None
        self._due = max(self._due + self.interval_s, time.monotonic())
        self._count += 1
        run = replace(self._moments[self._count % MOMENTS], steps=self._count)
        return s.Snapshot((s.RunView(run, elapsed_s=self._count / 4),), time.time())

    def close(self) -> None:
        """Has nothing to free."""


def _moment(ranks: int, dice: random.Random) -> s.Run:
    return s.Run(
        run_id="canned", title="train_gpt.py", strategy="ddp", world_size=ranks, hosts=["node"],
        backend="nccl", devices="cuda", model=s.Model(124_439_808, 497_759_232), state="running",
        reason="", steps=0, total_steps=100_000, cores=208, loss=s.Loss(11.0, dice.uniform(2, 3)),
        samples_per_s=dice.uniform(900, 1000), ranks=[_rank(each, dice) for each in range(ranks)],
        collectives=[], transfers=[], balance=s.Balance(1.0, 1.0, 1.0), diagnoses=[],
    )  # fmt: skip


def _rank(number: int, dice: random.Random) -> s.Rank:
    phases = {name: dice.uniform(1, 40) for name in ("data", "h2d", "forward", "backward")}
    step = sum(phases.values()) + 10
    use = {name: dice.randrange(100, 200) * MIB for name in ("params", "grads", "optimizer")}
    return s.Rank(
        rank=number, device=f"cuda:{number % 8}", host=f"node{number // 8}", pid=number,
        state="running", steps=dice.randrange(1000), dropped=0,
        step_ms=s.StepTime(step, step * 1.2, step), phases_ms=s.PhaseTimes(**phases, other=10.0),
        comm_ms=s.CommTimes(20.0, dice.uniform(1, 9), dice.uniform(1, 9)),
        memory=s.MemoryUse(sum(use.values()), sum(use.values()), 80 << 30, "cuda", **use),
        sent_bytes_per_step=dice.randrange(300, 400) * MIB,
        received_bytes_per_step=dice.randrange(300, 400) * MIB,
        gil_wait=0.0, idle=dice.random(), runqueue_wait=dice.random(),
    )  # fmt: skip


if __name__ == "__main__":
    DashboardApp(Canned(int(sys.argv[1]))).run()
