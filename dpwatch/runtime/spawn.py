"""Starting a run's hub: one detached process a host and run, whoever needs it first.

It lies here, and not beside the hub, because probes start hubs and may not import them.
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
"""How interpreters are called. In a frozen application `sys.executable` is the application."""


def ensure_hub(place: RunDir, more: Mapping[str, str] | None = None) -> None:
    """Starts the run's hub if none lives there; returns when it has been launched, not when ready.

    The hub detaches itself (its own session, no parent to leave a zombie to) and takes the run's
    lock; a second one that was started at the same moment finds the lock taken and ends.

    Args:
        place: The run's folder.
        more: What its environment is to have besides this process's.

    Raises:
        OSError: No folder could be made, or no process started.
    """
    interpreter = python()
    if interpreter is None:
        raise OSError(f"{sys.executable or 'this process'} is no Python that could run a hub")
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
    wanted: hub_request.HubRequest,
    start: Callable[[RunDir, Mapping[str, str]], None] | None = None,
) -> bool:
    """Starts the hub that a rank wants, where that can be done from here.

    Returns:
        Whether one was started.
    """
    if not hub_request.can_fulfil(wanted) or place.has_hub():
        return False
    try:
        (start or ensure_hub)(place, wanted.environment)
    except OSError:
        return False
    return True


def hub_environment() -> dict[str, str]:
    """A hub's environment: this process's, less what makes it a rank."""
    kept = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    return kept | launcher_env.variables_for_hub(os.environ)


def python() -> str | None:
    """An interpreter that runs this process's Python, None if there is none.

    `sys.executable` is the application itself in a frozen one, and whatever embeds the interpreter
    where that is embedded: to start it would train once more.
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
    """Whether the script has a SIGCHLD handler of its own, which would see a child of ours.

    torch's, which a DataLoader sets, looks at the DataLoader's workers alone.
    """
    handler: Any = signal.getsignal(signal.SIGCHLD)
    while callable(handler) and str(getattr(handler, "__module__", "")).startswith("torch."):
        handler = _before(handler)
    return handler is None or callable(handler)  # None: set by other code than Python's


def _before(handler: Callable[..., Any]) -> Any:
    """The handler that torch's calls after itself."""
    names = getattr(getattr(handler, "__code__", None), "co_freevars", ())
    cells = getattr(handler, "__closure__", None) or ()
    found = dict(zip(names, cells, strict=False)).get("previous_handler")
    before = None if found is None else found.cell_contents
    return signal.SIG_DFL if before is None else before
