"""Runs inside the training process: measures and streams, and never interferes."""

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
"""Re-installs the hooks of `dpwatch run`."""


def watch(
    *,
    strategy: str = "",
    title: str = "",
    devices: Sequence[DeviceInfo] | None = None,
    total_steps: int | None = None,
    memory: str | None = None,
) -> ProbeLike:
    """Streams this process's training from now until it ends or `close` is called.

    The calling thread is taken as the training thread. A second call returns the same probe. If the
    first call was that of `dpwatch run`, which has no settings, the second one's settings apply.

        with dpwatch.watch(total_steps=1000):
            train()

    Args:
        strategy: `single`, `dp`, `ddp`, …; "" if unknown.
        title: Human-readable name of the run; the script's name by default.
        devices: The devices this process drives; by default the one that holds the model.
        total_steps: Number of steps the run intends to do, if known.
        memory: `passive` or `exact` (docs/memory.md says what the latter may change); by default
            the value of `DPWATCH_MEMORY`, else `passive`.

    Returns:
        The process's probe. It is a context manager: leaving its block closes the run, as `failed`
        if an exception leaves it. With `DPWATCH=0`, or if the probe cannot start (one line on
        stderr says why), a probe that does nothing.

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
    """Starts the probe for `dpwatch run`, in a script that has not called `watch` itself.

    Args:
        rearm: Called when the next training should be detected like this one: in a forked child,
            and in a pool worker whose task has ended.
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
    """Whether a probe is running.

    A pool worker trains task after task. When a task ends, its probe makes room for the next one,
    which sends to the same hub; the hub then starts over.
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
    """Whether this is not the main interpreter: importing torch hangs in any other."""
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
    """Marks the end of a training step, for scripts whose steps are not their optimizer's.

    From the first call on, only these calls end steps. Call it once per step on the training
    thread, outside forward and backward; elsewhere, and without a probe, it does nothing.

    Raises:
        Nothing of its own.
    """
    if _current is not None and not _current.over:
        _current.step()


def current() -> ProbeLike | None:
    """The running probe of this process, None if there is none."""
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
