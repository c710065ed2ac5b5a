"""What runs inside the training process: it measures and streams, and never interferes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpwatch.probe.api import NullProbe, ProbeLike
from dpwatch.wire.messages import DeviceInfo

if TYPE_CHECKING:
    from dpwatch.probe.probe import Probe

__all__ = ["NullProbe", "ProbeLike", "current", "step", "watch", "watch_unasked"]

_lock = threading.Lock()
_current: Probe | None = None
_started = 0


def watch(
    *,
    strategy: str = "",
    title: str = "",
    devices: Sequence[DeviceInfo] | None = None,
    total_steps: int | None = None,
    memory: str | None = None,
) -> ProbeLike:
    """Streams what this process's training does, from now until the end or `close`.

    The calling thread is the training thread. A second call returns the same probe; where the
    first was `dpwatch run`'s, which knows nothing of the run, what the second one says counts. With
    `DPWATCH=0`, or when the probe can't start (which it says in one line on stderr), what comes
    back does nothing.

    Args:
        strategy: `single`, `dp`, `ddp`, …; "" if nobody knows.
        title: What a person would call the run; the script's name by default.
        devices: What this process drives; by default the device that the model lies on.
        total_steps: Steps the run intends to do, if known.
        memory: `passive` or `exact` (docs/memory.md says what the latter may change); by default
            what `DPWATCH_MEMORY` says, else `passive`.
    """
    global _current, _started
    if os.environ.get("DPWATCH") == "0":
        return NullProbe()
    with _lock:
        if _current is not None and not _current.over:
            _current.told(strategy=strategy, title=title, devices=devices,
                          total_steps=total_steps, memory=memory)  # fmt: skip
            return _current
        try:
            from dpwatch.probe.endings import prepare
            from dpwatch.probe.probe import Probe

            prepare(_ended, _forked)
            _current = Probe(
                strategy=strategy,
                title=title,
                devices=devices,
                total_steps=total_steps,
                memory=memory,
                incarnation=_started,
            )
        except Exception as error:  # noqa: BLE001 - training goes on, whatever it was
            print(f"dpwatch: not watching this run: {error}", file=sys.stderr)  # noqa: T201
            return NullProbe()
        _started += 1
        return _current


def watch_unasked() -> None:
    """What `dpwatch run` starts in a script that does not call `watch` itself, or not yet."""
    probe = watch()
    if not isinstance(probe, NullProbe) and _current is not None:
        _current.unasked = True


def step() -> None:
    """Says that a training step ends here, for scripts whose steps are not their optimizer's.

    From the first call on only such calls end steps. On the training thread, outside of forward
    and backward; without a probe it does nothing.
    """
    if _current is not None and not _current.over:
        _current.step()


def current() -> ProbeLike | None:
    """The probe at work in this process, None if there is none."""
    return None if _current is None or _current.over else _current


def _forked() -> None:
    global _current, _lock, _started
    _lock = threading.Lock()
    parents, _current, _started = _current, None, 0
    if parents is not None:
        parents.forked()


def _ended(error: BaseException | None) -> None:
    if _current is None or _current.over:
        return
    if error is None:
        _current.close()
    else:
        _current.failed_of(error)
