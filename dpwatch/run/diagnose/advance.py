"""Applies a frame to the state, and reviews the diagnoses when due."""

from __future__ import annotations

import msgspec

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.derive.verdict import verdict
from dpwatch.run.diagnose import review
from dpwatch.run.diagnose.alerts import kept
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import HUB_RANK, Batch, Bye, Command, Tick

MANY = 32
"""Of more ranks than this, ends come together: they are left to the tick after them."""

PACE_ROWS = 340
"""Rows reviewed per second: with more ranks, reviews are less frequent, …"""

SELDOM_S = 4.0
"""… but at least this often."""


def advance(state: RunState, batch: Batch) -> Run | None:
    """Applies a frame; reviews on the hub's tick (once a second) and when a rank ends.

    In runs of many ranks, whose ends come together, only the tick triggers a review.

    Returns:
        The run as it is now if it was reviewed, else None.
    """
    called_for = len(state.ranks) <= MANY and _calls_for_review(state, batch)
    apply(state, batch)
    if len(state.ranks) > MANY:
        if batch.rank != HUB_RANK or not _is_due(state):
            return None
    elif not called_for:
        return None
    state.reviewed_ns = state.now_ns
    run = summarize(state)
    state.diagnoses, state.silent_ns = review(run, state.diagnoses, state.silent_ns, state)
    state.alerts = kept(state.alerts, state.diagnoses, state.wall_s)
    told, why = verdict(state, run.ranks)  # depends on the diagnoses
    return msgspec.structs.replace(
        run, state=told, reason=why, diagnoses=state.diagnoses, alerts=list(state.alerts)
    )


def _is_due(state: RunState) -> bool:
    if (state.end_ns or 0) >= state.reviewed_ns:
        return True  # a rank has ended since
    pause_s = min(SELDOM_S, len(state.ranks) / PACE_ROWS)
    return state.now_ns - state.reviewed_ns >= (pause_s - 0.5) * 1e9


def _calls_for_review(state: RunState, batch: Batch) -> bool:
    """Whether a frame triggers a review, which is as expensive as thousands of records."""
    if batch.seq < 0:  # the hub's own: its clock, and processes' ends
        return any(isinstance(record, Tick | Bye | Command) for record in batch.records)
    rank = state.ranks.get(batch.rank)
    is_over = rank is not None and rank.pid == batch.pid and rank.bye is not None
    return not is_over and any(isinstance(record, Bye) for record in batch.records)
