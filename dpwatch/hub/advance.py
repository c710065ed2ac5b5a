"""One frame forward: the state takes it in, and now and then what is wrong is looked at anew.

Hub and viewer both go through here, so a viewer's state stays equal to its hub's.
"""

from __future__ import annotations

from dpwatch.hub.alerts import kept
from dpwatch.hub.diagnose import review
from dpwatch.hub.state import RunState
from dpwatch.hub.summarize import summarize
from dpwatch.wire.messages import HUB_RANK, Batch, Bye, Tick


def advance(state: RunState, batch: Batch) -> None:
    """Applies a frame; diagnoses on the hub's tick (once a second) and at a rank's end."""
    due = _calls_for_review(state, batch)
    state.apply(batch)
    if due:
        state.diagnoses, state.silent_ns = review(
            summarize(state), state.diagnoses, state.silent_ns, state
        )
        state.alerts = kept(state.alerts, state.diagnoses, state.wall_s)


def _calls_for_review(state: RunState, batch: Batch) -> bool:
    """A review costs as much as thousands of records, so no rank may call for one as it likes."""
    if batch.rank == HUB_RANK:
        return any(isinstance(record, Tick) for record in batch.records)
    rank = state.ranks.get(batch.rank)
    is_over = rank is not None and rank.pid == batch.pid and rank.bye is not None
    return not is_over and any(isinstance(record, Bye) for record in batch.records)
