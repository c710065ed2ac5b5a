"""What runs inside the training process: it measures and streams, and never interferes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpwatch.probe.api import NullProbe, ProbeLike
from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.send.identity import task
from dpwatch.wire.messages import DeviceInfo

if TYPE_CHECKING:
    from dpwatch.probe.probe import Probe

__all__ = ["NullProbe", "ProbeLike", "current", "step", "watch", "watch_implicitly"]

_lock = threading.Lock()
_current: Probe | None = None
_started = 0
_rearm: Callable[[], None] | None = None
"""Sets `dpwatch run`'s marks once more."""


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
    first was `dpwatch run`'s, which knows nothing of the run, what the second one says counts.

        with dpwatch.watch(total_steps=1000):
            train()

    Args:
        strategy: `single`, `dp`, `ddp`, …; "" if nobody knows.
        title: What a person would call the run; the script's name by default.
        devices: What this process drives; by default the device that the model lies on.
        total_steps: Steps the run intends to do, if known.
        memory: `passive` or `exact` (docs/memory.md says what the latter may change); by default
            what `DPWATCH_MEMORY` says, else `passive`.

    Returns:
        The process's probe, which is a context manager: at the end of its block the run is closed,
        `failed` if an exception leaves it. With `DPWATCH=0`, or when the probe can't start (which
        it says in one line on stderr), one that does nothing.

    Raises:
        Nothing of its own, neither here nor later.
    """
    if os.environ.get("DPWATCH") == "0" or sys.is_finalizing():
        return NullProbe()
    with _lock:
        goes_on = _is_active()
        if _current is not None and goes_on:
            _current.configure(strategy=strategy, title=title, devices=devices,
                          total_steps=total_steps, memory=memory)  # fmt: skip
            return _current
        return _start(
            strategy=strategy, title=title, devices=devices, total_steps=total_steps, memory=memory
        )


def watch_implicitly(rearm: Callable[[], None]) -> None:
    """What `dpwatch run` starts in a script that does not call `watch` itself, or not yet.

    Args:
        rearm: Called where the next training is to be heard of as this one was: in a forked child,
            and in a worker whose task is over.
    """
    global _rearm
    if os.environ.get("DPWATCH") == "0":
        return
    _rearm = rearm
    with _lock:
        if not _is_active() and not isinstance(_start(), NullProbe) and _current is not None:
            _current.implicit = True
            _current.when_idle = rearm
            if _current.task is not None:  # the next one constructs an optimizer of its own
                rearm()


def _is_active() -> bool:
    """Whether there is a probe at work.

    A pool's worker trains task after task. The probe of one that is over makes room for the next,
    which sends to the same place: the hub that is there begins anew.
    """
    global _started
    if _current is None or _current.over:
        return False
    if not _current.idle and _current.task == task():
        return True
    _current.close(then="idle")
    _started = 0
    return False


def _start(**told: Any) -> ProbeLike:
    global _current, _started
    try:
        if "torch" not in sys.modules and _is_subinterpreter():
            raise RuntimeError("torch cannot be imported in a subinterpreter")
        from dpwatch.probe.exit_hooks import prepare
        from dpwatch.probe.probe import Probe

        prepare(_on_exit, _on_fork)
        _current = Probe(incarnation=_started, before=_current, **told)
    except Exception as error:
        if is_foreign(error):
            raise
        _print_error(error)
        return NullProbe()
    _started += 1
    return _current


def _is_subinterpreter() -> bool:
    """Whether this is not the process's main interpreter: in others torch's import hangs."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # of 3.13 and later, and before
        try:
            module = import_module(name)
        except ImportError:
            continue
        return bool(module.get_current() != module.get_main())
    return False


def _print_error(error: Exception) -> None:
    if sys.stderr is not None:
        try:
            print(f"dpwatch: not watching this run: {error}", file=sys.stderr)  # noqa: T201
        except Exception as failed:  # a closed stream
            if is_foreign(failed):
                raise


def step() -> None:
    """Says that a training step ends here, for scripts whose steps are not their optimizer's.

    From the first call on only such calls end steps. To be called on the training thread, outside
    of forward and backward, once a step; elsewhere, and without a probe, it does nothing.

    Raises:
        Nothing of its own.
    """
    if _current is not None and not _current.over:
        _current.step()


def current() -> ProbeLike | None:
    """The probe at work in this process, None if there is none."""
    return None if _current is None or _current.over else _current


def _on_fork() -> None:
    global _current, _lock, _started
    _lock = threading.Lock()
    parents, _current, _started = _current, None, 0
    if parents is not None:
        parents.forked()
    if _rearm is not None:
        _rearm()


def _on_exit(error: BaseException | None) -> None:
    if _current is None or _current.over:
        return
    if error is None:
        _current.close(then="exit")
    else:
        _current.close_failed(error, then="exit")
