"""The states that a dashboard can be in: snapshots, the last of which stands on the screen."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from dpwatch.run.model import snapshot as s

from .scenes import (
    GPUS,
    alerted,
    cluster_run,
    ddp_run,
    dp_run,
    hostile_output,
    past,
    snapshot,
    starting_run,
    stuck_run,
    with_lanes,
    with_output,
)
from .schemes import every_run


def normal() -> list[s.Snapshot]:
    """One run goes on, one is over."""
    view = with_output(with_lanes(ddp_run()), fails=None)
    return [snapshot(view, dp_run(state="finished", steps=200))]


def device_0() -> list[s.Snapshot]:
    """nn.DataParallel: device 0 does more than the others; what was wrong before is listed."""
    return [snapshot(with_lanes(alerted(), late=None))]


def thirteen() -> list[s.Snapshot]:
    """A run of every strategy."""
    return [snapshot(*every_run())]


def gpus() -> list[s.Snapshot]:
    """No run, but GPUs that somebody uses."""
    return [replace(snapshot(), gpus=GPUS)]


def waiting() -> list[s.Snapshot]:
    """No run."""
    return [snapshot()]


def starting() -> list[s.Snapshot]:
    """Ranks have said hello, and nothing else is known."""
    return [snapshot(starting_run())]


def stale() -> list[s.Snapshot]:
    """The hub has been silent for 41 seconds."""
    view = with_output(with_lanes(ddp_run()), fails=None)
    silent = replace(view, connection="stale")
    return [snapshot(view, wall_s=1000.0), snapshot(silent, wall_s=1041.0)]


def lost() -> list[s.Snapshot]:
    """A rank was killed, and the run with it."""
    view = with_output(with_lanes(ddp_run(steps=88)), fails=None)
    text = "rank 2's process was killed (SIGKILL), often the kernel's out-of-memory killer"
    found = s.Diagnosis(
        kind="rank_lost", severity="critical", ranks=[2], since_step=88, text=text,
        evidence={"signal": "SIGKILL"},
    )  # fmt: skip
    ranks = [replace(rank, state="lost" if rank.rank == 2 else "failed") for rank in view.run.ranks]
    run = replace(
        view.run, state="lost", reason="rank 2 was killed (SIGKILL)", ranks=ranks,
        diagnoses=[found], alerts=[past("rank_lost", "critical", (2,), text, 990.0, None)],
    )  # fmt: skip
    return [snapshot(replace(view, run=run, connection="closed"))]


def failed() -> list[s.Snapshot]:
    """A rank has raised; its traceback is in the output."""
    view = with_output(with_lanes(ddp_run(steps=88)))
    ranks = [
        replace(rank, state="failed" if rank.rank == 2 else "finished") for rank in view.run.ranks
    ]
    reason = "rank 2: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB."
    run = replace(view.run, state="failed", reason=reason, ranks=ranks)
    return [snapshot(replace(view, run=run, connection="closed"))]


def hung() -> list[s.Snapshot]:
    """Six of eight ranks wait in an all-reduce for two that do not come."""
    view = with_output(with_lanes(stuck_run()), fails=None)
    text = (
        "ranks 5, 7 have not entered all_reduce 301 of group default for 41 s; the other 6 wait "
        "there. Rank 5 is at tokens.py:31, rank 7 at train.py:61."
    )
    found = s.Diagnosis(
        kind="hang", severity="critical", ranks=[5, 7], since_step=150, text=text,
        evidence={"group": "default", "seq": 301, "op": "all_reduce", "missing": [5, 7]},
    )  # fmt: skip
    ranks = [replace(rank, state="stalled") for rank in view.run.ranks]
    run = replace(
        view.run, ranks=ranks, diagnoses=[found], reason="ranks 5, 7 are waited for",
        alerts=[past("hang", "critical", (5, 7), text, 959.0, None)],
    )  # fmt: skip
    return [snapshot(replace(view, run=run))]


def many() -> list[s.Snapshot]:
    """1,024 ranks on 128 hosts."""
    view = with_lanes(cluster_run())
    found = s.Diagnosis(
        kind="rank_lost", severity="critical", ranks=[515], since_step=150,
        text="rank 515 on node-064.cluster is gone: its process was killed (SIGKILL)", evidence={},
    )  # fmt: skip
    return [snapshot(replace(view, run=replace(view.run, diagnoses=[found])))]


def hostile() -> list[s.Snapshot]:
    """Every text that ranks choose tries to be more than text."""
    return [snapshot(with_lanes(hostile_output()), dp_run())]


STATES: dict[str, Callable[[], list[s.Snapshot]]] = {
    each.__name__: each
    for each in (
        normal, device_0, thirteen, waiting, gpus, starting, stale, lost, failed, hung, many,
        hostile,
    )
}  # fmt: skip
SHOWN = {
    "waiting": ("overview", "compare", "help"),
    "gpus": ("overview",),
    "thirteen": ("overview", "compare", "alerts", "how"),
    "starting": ("overview", "heatmap", "memory", "timeline", "threads", "compare", "how", "rank"),
    "stale": ("overview", "heatmap", "compare", "stacks"),
    "lost": ("overview", "heatmap", "memory", "timeline", "threads", "compare", "alerts"),
    "failed": ("overview", "heatmap", "compare", "alerts", "output"),
}
"""Screens that show something no other state does, where these are not all."""

SMALL, USUAL, LARGE, LARGEST = (80, 24), (120, 35), (200, 60), (240, 70)
SIZES = {
    "normal": (SMALL, USUAL, LARGE, LARGEST),
    "many": (SMALL, USUAL, LARGE),
    "hung": (SMALL, USUAL),
    "device_0": (SMALL, USUAL),
    "thirteen": (SMALL, LARGE),
    "hostile": (SMALL,),
}
"""Sizes to draw a state at; the others are drawn at the usual one: their layout is the same."""
