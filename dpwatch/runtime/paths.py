"""Where runs live on this host: a private runtime directory with one directory per run.

```
$DPWATCH_RUNTIME_DIR | $XDG_RUNTIME_DIR/dpwatch | /tmp/dpwatch-UID      0700
└── RUN_ID/             0700
    ├── lock            locked (flock) by the run's hub while it lives
    ├── run.json        identifies the hub; exists once its sockets are bound
    ├── hub.log         the hub's stderr
    ├── state           the hub's state, saved now and then for a successor
    ├── in, out, ask    its ipc sockets: records in, records out, state on request
    ├── ask-stacks      which ranks should send their stacks; exists after the first request
    └── wanted          a rank's request for a hub (`runtime.hub_request`)
```

Next to them, `.last/` holds the views of finished runs, for `dpwatch --last` (`kept_runs`).

Ranks use one runtime directory, chosen by their own environment. A viewer's environment may differ,
so viewers search all candidates (`runtime_paths`).
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
"""Longest path of a unix socket on Linux (`sun_path` without its final NUL)."""

RUN_ID_CHARS = 48
LEAST_CHARS = 24
"""Characters of a run id that must fit: the session number, the hash its ranks share, and part of
the script's name."""

TRIES = 3
"""How often to create a run's directory that a viewer may remove as an old empty one."""


def host_name() -> str:
    """This host's name without its domain; ranks and hubs compare it."""
    return socket.gethostname().split(".")[0]


def runtime_dir(*, for_runs: bool = False) -> Path:
    """The runtime directory for this process's runs, created if necessary.

    Args:
        for_runs: Check that run directories of any name fit into a socket path.

    Raises:
        RuntimeDirError: It cannot be created or written, belongs to another user, or its path is
            too long for sockets.
    """
    path = runtime_path()
    if for_runs and not _has_room(path):
        raise RuntimeDirError(
            f"the path of the runtime directory {path} is too long for unix sockets "
            f"({IPC_PATH_BYTES} bytes); set DPWATCH_RUNTIME_DIR to a shorter path"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeDirError(
            f"cannot create the runtime directory {path}: {error.strerror}; "
            "set DPWATCH_RUNTIME_DIR to a directory you can write"
        ) from None
    # Users with read access see only the runs' names, since the run directories are private.
    check_private(path, 0o022)
    if not os.access(path, os.W_OK | os.X_OK):
        raise RuntimeDirError(
            f"cannot write to the runtime directory {path}; "
            "set DPWATCH_RUNTIME_DIR to a directory you can write"
        )
    return path


def private_dir() -> Path:
    """Creates a fallback runtime directory. The last hub in it removes it.

    Raises:
        OSError: There is no place for one.
    """
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        with contextlib.suppress(OSError):
            path = Path(tempfile.mkdtemp(prefix=FALLBACK, dir=parent))
            if _has_room(path):
                return path
            path.rmdir()
    raise RuntimeDirError(
        "no temporary directory can hold a runtime directory; set DPWATCH_RUNTIME_DIR"
    )


def _has_room(path: Path) -> bool:
    """Whether socket paths in run directories there are short enough."""
    return len(os.fsencode(path)) + LEAST_CHARS + len("//ask") <= IPC_PATH_BYTES


def run_dir(run_id: str) -> RunDir:
    """The directory of a run, created if necessary.

    Raises:
        RuntimeDirError: It cannot be created, or its socket paths would be too long.
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
            os.utime(place.path)  # or viewers may take it for an old empty one
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RuntimeDirError(f"cannot create {place.path}: {error.strerror}") from None
        break
    place.check()
    return place


def clean_run_id(run_id: str) -> str:
    """A run id as a file name: letters, digits, `.`, `_` and `-`, at most 48 characters."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).strip("-.")[:RUN_ID_CHARS]
    return name or "run"


def runtime_path() -> Path:
    """Path of this process's runtime directory, whether it exists or not."""
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
    """All directories that may hold this user's runs: TMPDIR and the like differ between shells."""
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
