"""Starts a run's hub: one detached process per host and run, by whoever needs it first.

It is not in `hub` because probes start hubs and may not import that package.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import spawn
from typing import Any

from dpwatch.runtime import hub_request, launcher_env
from dpwatch.runtime.paths import RunDir

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LD_PRELOAD", "PYTHONSTARTUP")

_A_PYTHON = re.compile(r"(python|pypy|graalpy)[\d.]*[dtm]*", re.I)
"""Names of Python interpreters. In a frozen application `sys.executable` is the application."""


def ensure_hub(place: RunDir, more: Mapping[str, str] | None = None) -> None:
    """Starts the run's hub unless it is running; returns once it is launched, not once it is ready.

    The hub detaches itself (its own session, no parent that would have to reap it) and takes the
    run's lock. If two are started at the same moment, the second finds the lock taken and exits.

    Args:
        place: The run's directory.
        more: Environment variables in addition to this process's.

    Raises:
        OSError: The directory could not be created, or no process started.
    """
    interpreter = python()
    if interpreter is None:
        program = sys.executable or "this process"
        raise OSError(f"{program} is not a Python interpreter, so no hub can be started")
    if not place.prepare():
        return
    starter = subprocess.Popen(
        [interpreter, "-m", "dpwatch.hub", "--detach", str(place.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**hub_environment(), **(more or {})},
        close_fds=True,
        cwd="/",
    )
    starter.wait()


def fulfil(
    place: RunDir,
    request: hub_request.HubRequest,
    start: Callable[[RunDir, Mapping[str, str]], None] | None = None,
) -> bool:
    """Starts the hub that a rank has requested, if that is possible from here.

    Returns:
        Whether one was started.
    """
    if not hub_request.can_fulfil(request) or place.has_hub():
        return False
    try:
        (start or ensure_hub)(place, request.environment)
    except OSError:
        return False
    return True


def hub_environment() -> dict[str, str]:
    """Environment of a hub: this process's, without what makes it a rank."""
    kept = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    return kept | launcher_env.variables_for_hub(os.environ)


def python() -> str | None:
    """Path of an interpreter of this process's Python, None if there is none.

    In a frozen application, `sys.executable` is the application itself; with an embedded
    interpreter it is the embedding program. Starting either would train again.
    """
    not_ours = sys.executable if getattr(sys, "frozen", False) else None
    found = (path for path in _candidates() if path != not_ours and _is_python(path))
    return next(found, None)


def _candidates() -> Iterator[str]:
    yield sys.executable or ""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        yield os.path.join(prefix, "bin", version)
    yield getattr(sys, "_base_executable", "") or ""
    set_by_script = spawn.get_executable()
    yield os.fsdecode(set_by_script) if set_by_script else ""


def _is_python(path: str) -> bool:
    named = _A_PYTHON.fullmatch(os.path.basename(path)) is not None
    return named and os.path.isfile(path) and os.access(path, os.X_OK)


def handles_sigchld() -> bool:
    """Whether the script has its own SIGCHLD handler, which would notice a child of ours.

    torch's handler, which DataLoader installs, only checks DataLoader workers and does not count.
    """
    handler: Any = signal.getsignal(signal.SIGCHLD)
    while callable(handler) and str(getattr(handler, "__module__", "")).startswith("torch."):
        handler = _before(handler)
    return handler is None or callable(handler)  # None: set by other code than Python's


def _before(handler: Callable[..., Any]) -> Any:
    """The handler that torch's handler calls next."""
    names = getattr(getattr(handler, "__code__", None), "co_freevars", ())
    cells = getattr(handler, "__closure__", None) or ()
    found = dict(zip(names, cells, strict=False)).get("previous_handler")
    before = None if found is None else found.cell_contents
    return signal.SIG_DFL if before is None else before
