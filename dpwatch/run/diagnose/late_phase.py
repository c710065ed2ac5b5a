"""Which phase made a rank late: the one in which it spent more time than the others."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpwatch.quantiles import median
from dpwatch.run.derive.communication import device_of, untimed
from dpwatch.run.diagnose.finding import some_of
from dpwatch.run.state.arrivals import LateArrival
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import PHASES, Step

PHASE_WORDS = {
    "data": "waiting for its data",
    "h2d": "copying its batch to the device",
    "forward": "in forward",
    "backward": "in backward",
    "optimizer": "in the optimizer",
    "other": "in code outside the phases",
}
PHASE_ADVICE = {
    "data": "Check its data loader: disk or network, workers, its shard of the data.",
    "h2d": "Check its link to the device, and whether memory is pinned.",
    "forward": "Check its device (clock, temperature, other processes) and its batches (longer "
    "sequences, more work).",
    "backward": "Check its device (clock, temperature, other processes) and hooks that only run "
    "there.",
    "optimizer": "Check what only this rank does there, such as a larger shard.",
    "other": "Check what only this rank does between the phases: logging, checkpoints, garbage "
    "collection.",
}


class Cause(msgspec.Struct, frozen=True):
    """A phase, and how much longer than the others' median the late rank spent in it."""

    phase: str
    excess_ns: float


def cause_of(state: RunState, late: Sequence[LateArrival]) -> Cause | None:
    """What typically delayed the rank in these calls, None if no step can tell."""
    by_call = excesses_of(state, late)
    if not by_call:
        return None
    typical = {p: median(found.get(p) for found in by_call) or 0.0 for p in PHASE_WORDS}
    phase = max(typical, key=lambda p: typical[p])
    return Cause(phase, typical[phase])


def excesses_of(state: RunState, late: Sequence[LateArrival]) -> list[dict[str, float]]:
    """For each of these calls, all with the same late rank, its excess time by phase.

    Calls whose step has no phases are left out.
    """
    rank = late[0].latest
    steps = {call.step for call in late} | {call.step - 1 for call in late}
    others = [r for r in some_of(list(state.ranks)) if r != rank]
    records = {r: _records(state, r, steps) for r in (*others, rank)}
    return [found for call in late if (found := _excesses(call, rank, records))]


def _records(state: RunState, rank: int, steps: set[int]) -> dict[int, Step]:
    lane = state.ranks[rank].lanes.get(0)
    if lane is None:
        return {}
    device = device_of(state.ranks[rank], 0)
    found = lane.recent.steps(0)
    return {s.step: s for s in found if s.step in steps and not untimed(device, s)}


def _excesses(
    call: LateArrival, rank: int, records: dict[int, dict[int, Step]]
) -> dict[str, float] | None:
    """By phase, how much longer than the others' median the rank took before the call.

    None if steps were only counted, or not measured on the device: their phases are unknown.
    """
    own, before = records[rank].get(call.step), records[rank].get(call.step - 1)
    if own is None or (call.first and before is None):
        return None
    excess = dict.fromkeys(PHASE_WORDS, 0.0)
    reached = PHASES.index(call.phase) if call.phase else PHASES.index("optimizer")
    if call.first:
        # Since the last call of the previous step: its optimizer, and this step so far.
        excess["optimizer"] = _over(rank, records, call.step - 1, "optimizer")
        for phase in PHASES[:reached]:
            excess[phase] = _over(rank, records, call.step, phase)
    if call.phase and call.excess_ns is not None:
        excess[call.phase] += call.excess_ns
    told = sum(value for value in excess.values() if value > 0)
    excess["other"] = call.lag_ns - told
    return excess


def _over(rank: int, records: dict[int, dict[int, Step]], step: int, phase: str) -> float:
    name = f"{phase}_ns"
    own = getattr(records[rank].get(step), name, None) or 0
    others = (getattr(found.get(step), name, None) for r, found in records.items() if r != rank)
    return float(own - (median(others) or 0.0))
