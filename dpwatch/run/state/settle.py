"""Puts what is pending into a run's sums, before anybody reads them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from dpwatch.run.state.pending import Pending
from dpwatch.run.state.run_state import RunState


def settle(state: RunState) -> None:
    """Puts what is pending into the sums."""
    pending = state.pending
    if not pending.count:
        return
    state.pending = Pending()
    settler = settler_of_many()
    if settler is not None:
        settler(state, pending)


@functools.cache
def settler_of_many() -> Callable[[Any, Pending], None] | None:
    """What settles, None where numpy is not installed.

    Imported here, so that no hub of a small run takes the time and memory.
    """
    try:
        from dpwatch.run.state import settling
    except ImportError:
        return None
    return settling.settled
