"""Adds pending records to a run's sums, before the sums are read."""

from __future__ import annotations

import numpy as np

from dpwatch.run.state.arrivals import DONE, ISSUED, RANK
from dpwatch.run.state.call_entries import Kinds, open_calls, table_of, table_of_open
from dpwatch.run.state.call_tallies import add_duration, tally
from dpwatch.run.state.pending import Pending
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import NONE
from dpwatch.run.state.step_rows import add_steps
from dpwatch.wire.calls import Calls
from dpwatch.wire.messages import Collective


def flush(state: RunState) -> None:
    """Adds pending records to the sums."""
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


def add_open_calls(state: RunState, calls: list[tuple[int, Calls | Collective]]) -> None:
    """Adds calls to the open ones that the sums already include, as when states are merged."""
    _add_calls(state, calls, are_in_sums=True)


def forget_calls(state: RunState, rank: int) -> None:
    """Removes the open calls of a rank that restarts."""
    arrivals = state.arrivals
    table = table_of_open(arrivals.open)
    arrivals.open = open_calls(table[:, table[RANK] != rank], arrivals.open.kinds)
    arrivals.matched.clear()
    arrivals.mismatch = None


def shift_calls(state: RunState, offset_ns: int) -> None:
    """Adds `offset_ns` to the times of open calls."""
    open_ones = state.arrivals.open
    table = table_of_open(open_ones).copy()
    for row in (ISSUED, DONE):
        table[row] += np.where(table[row] == NONE, 0, offset_ns)
    state.arrivals.open = open_calls(table, open_ones.kinds)


def _add_calls(
    state: RunState, calls: list[tuple[int, Calls | Collective]], *, are_in_sums: bool = False
) -> None:
    old = table_of_open(state.arrivals.open)
    kinds = Kinds(state.arrivals.open.kinds)
    entries = np.concatenate([old, table_of(calls, kinds)], axis=1)
    tally(state, entries, (entries if are_in_sums else old).shape[1], kinds.all)
