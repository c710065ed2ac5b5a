"""Puts what is pending into a run's sums, before anybody reads them."""

from __future__ import annotations

import numpy as np

from dpwatch.run.state.call_entries import Kinds, table_of
from dpwatch.run.state.call_tallies import add_duration, tally
from dpwatch.run.state.pending import Pending
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.step_rows import add_steps
from dpwatch.wire.calls import Calls
from dpwatch.wire.messages import Collective


def flush(state: RunState) -> None:
    """Puts what is pending into the sums."""
    pending = state.pending
    if not pending.count:
        return
    state.pending = Pending()
    add_steps(state, pending.steps)
    _add_calls(state, pending.calls)
    for r, record in pending.durations:
        rank = state.ranks.get(r)
        if rank is not None:
            add_duration(state, rank, record)


def match_open(state: RunState) -> None:
    """Looks anew which of the open calls all ranks have entered."""
    _add_calls(state, [])


def _add_calls(state: RunState, calls: list[tuple[int, Calls | Collective]]) -> None:
    waiting = state.arrivals.open
    kinds = Kinds(waiting.kinds)
    old = waiting.table()
    entries = np.concatenate([old, table_of(calls, kinds)], axis=1)
    tally(state, entries, old.shape[1], kinds.all)
