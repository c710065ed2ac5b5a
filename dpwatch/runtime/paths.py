"""Where runs lie on this host: a private runtime directory with one folder a run.

```
$DPWATCH_RUNTIME_DIR | $XDG_RUNTIME_DIR/dpwatch | /tmp/dpwatch-UID      0700
└── RUN_ID/             0700
    ├── lock            held (flock) by the run's hub as long as it lives
    ├── run.json        who the hub is; there once its sockets are bound
    ├── hub.log         the hub's stderr
    ├── state           what it knows, written now and then for a successor
    ├── in, out, ask    its ipc sockets: records in, records out, state on request
    ├── ask-stacks      which ranks are to send their stacks; there once somebody has asked
    └── wanted          a rank's request for a hub (`runtime.hub_request`)
```

Beside them `.last/` has the states of runs that are over, for `dpwatch --last` (`hub.last`).

Ranks use one runtime directory, by their own environment. A viewer's may differ, so viewers look
into all that there may be (`runtime_paths`).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from pathlib import Path

from dpwatch.runtime.run_dir import FALLBACK as FALLBACK
from dpwatch.runtime.run_dir import HUB_FILES as HUB_FILES
from dpwatch.runtime.run_dir import RunDir as RunDir
from dpwatch.runtime.run_dir import RunInfo as RunInfo
from dpwatch.runtime.run_dir import RuntimeDirError as RuntimeDirError
from dpwatch.runtime.run_dir import check_private

IPC_PATH_BYTES = 107
"""Longest path of a unix socket on Linux (sun_path, less its final NUL)."""

RUN_ID_CHARS = 48
LEAST_CHARS = 24
"""Of a run id: a session's number, what its ranks have in common, and some of the script's name."""

TRIES = 3
"""How often a run's folder is made that a viewer takes for an old empty one."""


def host_name() -> str:
    """This host's name, without its domain; ranks and hubs compare theirs."""
    return socket.gethostname().split(".")[0]


def runtime_dir(*, for_runs: bool = False) -> Path:
    """The runtime directory that this process's runs lie in, made if need be.

    Args:
        for_runs: Runs are to be begun in it, whatever their names.

    Raises:
        RuntimeDirError: It can't be made or written, belongs to somebody else, or leaves no room
            for the sockets of runs.
    """
    path = runtime_path()
    if for_runs and not _has_room(path):
        raise RuntimeDirError(
            f"the runtime directory {path} leaves too little of a unix socket's "
            f"{IPC_PATH_BYTES} bytes; set DPWATCH_RUNTIME_DIR to a shorter path"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeDirError(
            f"cannot make the runtime directory {path}: {error.strerror}; "
            "set DPWATCH_RUNTIME_DIR to a directory you can write"
        ) from None
    # Who may only look sees the runs' names: their folders are closed.
    check_private(path, 0o022)
    if not os.access(path, os.W_OK | os.X_OK):
        raise RuntimeDirError(
            f"cannot write the runtime directory {path}; "
            "set DPWATCH_RUNTIME_DIR to a directory you can write"
        )
    return path


def private_dir() -> Path:
    """A new runtime directory, for want of the usual one. The last hub in it takes it away.

    Raises:
        OSError: There is no place for one.
    """
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        with contextlib.suppress(OSError):
            path = Path(tempfile.mkdtemp(prefix=FALLBACK, dir=parent))
            if _has_room(path):
                return path
            path.rmdir()
    raise RuntimeDirError("there is no place for a runtime directory")


def _has_room(path: Path) -> bool:
    """Whether sockets' paths in runs' folders there are short enough."""
    return len(os.fsencode(path)) + LEAST_CHARS + len("//ask") <= IPC_PATH_BYTES


def run_dir(run_id: str) -> RunDir:
    """The folder of a run, made if need be.

    Raises:
        RuntimeDirError: It can't be made, or its sockets' paths would be too long.
    """
    place = RunDir(runtime_dir() / clean_run_id(run_id))
    longest = len(os.fsencode(place.path / "ask"))
    if longest > IPC_PATH_BYTES:
        raise RuntimeDirError(
            f"{place.path} is too long for a unix socket ({longest} of {IPC_PATH_BYTES} bytes); "
            "set DPWATCH_RUNTIME_DIR to a shorter path"
        )
    for _ in range(TRIES):
        try:
            place.path.mkdir(mode=0o700, exist_ok=True)
            os.utime(place.path)  # so that it is no old one
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RuntimeDirError(f"cannot make {place.path}: {error.strerror}") from None
        break
    place.check()
    return place


def clean_run_id(run_id: str) -> str:
    """A run id as a file name: letters, digits, `.`, `_` and `-`, at most 48 of them."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).strip("-.")[:RUN_ID_CHARS]
    return name or "run"


def runtime_path() -> Path:
    """Where this process's runs lie, or would if the directory were made."""
    if named := os.environ.get("DPWATCH_RUNTIME_DIR"):
        return Path(named).absolute()
    if session := os.environ.get("DPWATCH_SESSION_DIR"):
        with contextlib.suppress(RuntimeDirError):  # of the host that `dpwatch run` is on
            check_private(Path(session), 0o022)
            return Path(session)
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        candidate = Path(xdg)
        if candidate.is_dir() and os.access(candidate, os.W_OK):
            return candidate / "dpwatch"
    return Path(tempfile.gettempdir()) / f"dpwatch-{os.getuid()}"


def runtime_paths() -> list[Path]:
    """Everywhere that runs of this user may lie: TMPDIR and the like differ between shells."""
    if os.environ.get("DPWATCH_RUNTIME_DIR"):
        return [runtime_path()]
    user = os.getuid()
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    places = [
        runtime_path(),
        *([Path(xdg) / "dpwatch"] if xdg else []),
        Path(f"/run/user/{user}/dpwatch"),
        Path(tempfile.gettempdir()) / f"dpwatch-{user}",
        Path(f"/tmp/dpwatch-{user}"),
    ]
    return list(dict.fromkeys(places))
