"""`comm_bound`: compute waits for communication, more than late ranks explain.

Rule: for more than half of the ranks, exposed communication minus the time waited for other ranks
to enter a call takes at least 25 % of the step; from 40 % on it is a warning. Ranks that wait for
a late one are covered by `straggler`. The patterns:

- *repeated*: under DDP, all-reduces of at least 1.9 times the model's bytes per step, as when
  gradients are exchanged for each micro-batch instead of once per step;
- *messages*: mostly send and recv, as between the stages of a pipeline;
- *many_calls*: at least 32 calls per step of 64 KiB or less on average;
- *few_bytes*: less than 64 KiB per step in fewer calls;
- *bytes*: anything else.

If ranks share too few cores, their collectives also wait for a core, and `cpu_oversubscribed` says
so. There, and if the share is lower without the waits for late ranks, *repeated* and *many_calls*
are reported as a hint (`info`), from 10 % and 25 % of the step on, those waits included: these
patterns follow from counts, not from times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpwatch.quantiles import median
from dpwatch.run.diagnose import cpu_oversubscribed
from dpwatch.run.diagnose.finding import SETTLED_STEPS, Finding, shared_by_most, some_of
from dpwatch.run.model.snapshot import CollectiveStats, Run
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import NONE, WAIT_NS
from dpwatch.units import size
from dpwatch.wire.collectives import MESSAGES

WORTH_SAYING = 0.25
WARNING = 0.40
STEPS = 32

TIMES_THE_MODEL = 1.9
MANY_CALLS = 32
SMALL_BYTES = 64 << 10

HINTS = {"repeated": 0.10, "many_calls": 0.25}
"""Patterns that don't depend on times, and the share of the step from which they matter."""

_CURES = {
    "bytes": "Communicate less: accumulate gradients over more batches (with no_sync), use a "
    "larger batch or bf16 gradients, or shard within a host only (HSDP).",
    "many_calls": "The number of calls costs, not their bytes: combine them (DDP's buckets, one "
    "flat tensor, a coalescing manager).",
    "messages": "These are point-to-point messages, as between pipeline stages, which wait for "
    "each other: use more micro-batches, another schedule (1F1B, interleaved), or equal stages.",
    "few_bytes": "So few bytes take no time; all ranks having to meet in each call does. Call less "
    "often, or call asynchronously and wait later.",
}


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on exposed communication's share of the step."""
    if not run.collectives or run.steps < SETTLED_STEPS:
        return None
    shares = net_shares(run, state)
    share = shared_by_most(shares.values())
    load = _load(run, state)
    pattern = _pattern(run, load)
    if share is None or share < WORTH_SAYING:
        share = _gross_share(run)
        if pattern not in HINTS or share is None or share < HINTS[pattern]:
            return None
        aside = "waits for late ranks included" if shares else "part of that is waiting for a core"
        return _finding(run, state, load, pattern, share, share, aside)
    return _finding(run, state, load, pattern, share, max(shares.values()))


def net_shares(run: Run, state: RunState) -> dict[int, float]:
    """By rank, exposed communication that late ranks don't explain, as a share of the step.

    Empty if a lack of cores could be mistaken for it, and during the first steps.
    """
    crowded = run.devices != "cuda" and run.cores is not None and len(run.ranks) > run.cores
    if run.steps < SETTLED_STEPS or crowded or cpu_oversubscribed.rule(run) is not None:
        return {}
    shares = {r: _net_share(rank) for r, rank in some_of(list(state.ranks.items()))}
    known = {r: share for r, share in shares.items() if share is not None}
    return known if 2 * len(known) > len(shares) else {}


def _net_share(rank: RankState) -> float | None:
    """The median over the steps with measured exposed time, None without any."""
    lane = rank.lanes.get(0)
    if lane is None:
        return None
    columns = (lane.recent.field(name) for name in ("step", "exposed_ns"))
    rows = zip(*columns, lane.recent.took_ns(), strict=True)
    measured = [row for row in rows if row[1] != NONE and row[0]][-STEPS:]
    mine = [by for each in rank.lanes.values() for by in each.calls.values()]
    waited = [by.column(WAIT_NS, [step for step, _, _ in measured]) for by in mine]
    waits_ns = list(map(sum, zip(*waited, strict=True))) or [0] * STEPS
    return median(
        max(0, exposed_ns - wait_ns) / max(1, took_ns)
        for (_, exposed_ns, took_ns), wait_ns in zip(measured, waits_ns, strict=False)
    )


def _gross_share(run: Run) -> float | None:
    """The share of the step in which compute waits for communication, for whatever reason."""
    shares = (row.comm_ms.exposed_share for row in run.ranks)
    return shared_by_most(share for share in shares if share is not None)


class Load(NamedTuple):
    """What a rank contributes per step: the most of any rank.

    Attributes:
        reduced: Bytes of it that are all-reduced.
        heaviest: The op and group with most of it.
    """

    calls: float
    nbytes: int
    reduced: int
    heaviest: CollectiveStats


def _load(run: Run, state: RunState) -> Load:
    """Sums the ops and groups that each rank calls: no rank is in all groups."""
    by_key = {f"{each.op}/{each.group}": each for each in run.collectives}
    loads = []
    for rank in some_of(list(state.ranks.values())):
        keys = {key for lane in rank.lanes.values() for key in lane.calls}
        mine = [each for key, each in by_key.items() if key in keys]
        if mine:
            loads.append(_sum(mine))
    return max(loads, key=lambda load: load.nbytes, default=None) or _sum(run.collectives)


def _sum(each: Sequence[CollectiveStats]) -> Load:
    reduced = sum(one.bytes_per_step or 0 for one in each if one.op == "all_reduce")
    return Load(
        sum(one.count_per_step or 0 for one in each),
        sum(one.bytes_per_step or 0 for one in each),
        reduced,
        max(each, key=lambda one: one.bytes_per_step or 0),
    )


def _pattern(run: Run, load: Load) -> str:
    times = _times_the_model(run, load) or 0
    if times >= TIMES_THE_MODEL and run.strategy.startswith("ddp"):
        return "repeated"
    if load.heaviest.op in MESSAGES:
        return "messages"
    if load.calls >= MANY_CALLS and load.nbytes <= SMALL_BYTES * load.calls:
        return "many_calls"
    return "few_bytes" if load.nbytes < SMALL_BYTES else "bytes"


def _times_the_model(run: Run, load: Load) -> float | None:
    """How many times the model's bytes are all-reduced per step, None if unknown."""
    return load.reduced / run.model.param_bytes if run.model.param_bytes else None


def _finding(
    run: Run,
    state: RunState,
    load: Load,
    pattern: str,
    share: float,
    most: float,
    aside: str = "",
) -> Finding:
    """The finding; a hint has an `aside` about what else the share includes."""
    calls, moved, _, heaviest = load
    times = _times_the_model(run, load)
    of_it = f" ({aside})" if aside else ""
    text = (
        f"Compute waits for communication {share:.0%} of each step{of_it}; a rank contributes "
        f"{size(moved)} per step in {calls:.0f} call{'s' * (round(calls) != 1)}, most of it to "
        f"{heaviest.op} (group {heaviest.group}). {_cure(pattern, times)}"
    )
    return Finding(
        kind="comm_bound",
        severity="warning" if share >= WARNING and not aside else "info",
        ranks=sorted(state.ranks),
        text=text,
        evidence={
            "pattern": pattern,
            "cost": share,
            "cost_max": most,
            "bytes_per_step": moved,
            "calls_per_step": calls,
            "bytes_over_model": times,
            "op": heaviest.op,
            "group": heaviest.group,
            "exposed_ms": median(row.comm_ms.exposed for row in run.ranks),
            "wait_ms": median(row.comm_ms.wait for row in run.ranks),
        },
    )


def _cure(pattern: str, times: float | None) -> str:
    if pattern != "repeated" or times is None:
        return _CURES[pattern]
    count = round(times)
    return (
        f"That is {times:.1f} times the model's bytes: gradients are exchanged {count} times per "
        "step. If they are accumulated over micro-batches, wrap every backward but the last of a "
        f"step in the model's no_sync(): it saves {count - 1} of {count} exchanges."
    )
