"""One frame forward: the state takes it in, and now and then what is wrong is looked at anew.

Hub and viewer both go through here, so a viewer's state stays equal to its hub's.
"""

from __future__ import annotations

from dpwatch.hub.alerts import kept
from dpwatch.hub.diagnose import review
from dpwatch.hub.state import RunState
from dpwatch.hub.summarize import summarize
from dpwatch.wire.messages import Batch, Bye, Tick


def advance(state: RunState, batch: Batch) -> None:
    """Applies a frame; diagnoses on the hub's tick (once a second) and at a rank's end."""
    state.apply(batch)
    if any(isinstance(record, Tick | Bye) for record in batch.records):
        state.diagnoses, state.silent_ns = review(
            summarize(state), state.diagnoses, state.silent_ns, state
        )
        state.alerts = kept(state.alerts, state.diagnoses, state.wall_s)
