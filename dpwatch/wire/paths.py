"""Where runs lie on this host: a private runtime directory with one folder a run.

```
$DPWATCH_RUNTIME_DIR | $XDG_RUNTIME_DIR/dpwatch | /tmp/dpwatch-UID      0700
└── RUN_ID/             0700
    ├── lock            held (flock) by the run's hub as long as it lives
    ├── run.json        who the hub is; there once its sockets are bound
    ├── hub.log         the hub's stderr
    ├── state           what it knows, written now and then for a successor
    ├── in, out, ask    its ipc sockets: records in, records out, state on request
    └── ask-stacks      which ranks are to send their stacks; there once somebody has asked
```
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges
from dpwatch.wire.messages import PROTOCOL_VERSION

IPC_PATH_BYTES = 107
"""Longest path of a unix socket on Linux (sun_path, less its final NUL)."""

RUN_ID_CHARS = 48
INFO_BYTES = 1 << 16
"""A `run.json` is some hundred bytes; what is larger is none."""

_OURS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""How files here are opened: no link is followed, and no pipe put in their place waited for."""

SUCCESSOR_S = 30.0
"""How long a killed hub's state is left for the one that the ranks will start."""

HUB_FILES = ("in", "out", "ask", "ask-stacks", "ask-stacks.new")
"""What a hub makes in its run's folder and a successor of a killed one clears away."""

_OTHER_FILES = ("run.json", "run.new", "hub.log", "state", "state.new", "lock")


class RuntimeDirError(OSError):
    """The runtime directory can't be used; the message says what to do."""


class RunInfo(msgspec.Struct, frozen=True):
    """`run.json`: what a viewer needs to follow a run.

    `session` is that of the `dpwatch run` on this host that started it, "" without one.
    """

    run_id: ranges.Word
    host: ranges.Word
    hub_pid: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    started_wall_s: Annotated[float, Meta(ge=0, le=1e11)]
    protocol: int = PROTOCOL_VERSION
    session: str = ""


class RunDir:
    """A run's folder: its sockets, its lock, its `run.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self.ingest = f"ipc://{path / 'in'}"
        self.publish = f"ipc://{path / 'out'}"
        self.ask = f"ipc://{path / 'ask'}"
        self.info_file = path / "run.json"
        self.lock_file = path / "lock"
        self.log_file = path / "hub.log"
        self.state_file = path / "state"
        self.stacks_file = path / "ask-stacks"

    def read_info(self) -> RunInfo | None:
        """What `run.json` says, None while no hub has written one (or it is unreadable)."""
        try:
            fd = os.open(self.info_file, os.O_RDONLY | _OURS)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > INFO_BYTES:
                return None
            return msgspec.json.decode(os.read(fd, INFO_BYTES), type=RunInfo)
        except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None
        finally:
            os.close(fd)

    def write_info(self, info: RunInfo) -> None:
        """Writes `run.json` whole: a reader sees all of it or none."""
        draft = self.info_file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OURS, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(info))
        draft.replace(self.info_file)

    def log(self, line: str) -> None:
        """Appends a line to `hub.log`, which need not be where it was at the last one."""
        fd = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OURS, 0o600)
        with open(fd, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")

    def check(self) -> None:
        """Makes sure that the folder is one, this user's, and closed to everybody else.

        Raises:
            RuntimeDirError: It isn't.
        """
        _check_private(self.path, 0o077)

    def try_lock(self) -> int | None:
        """Takes the hub's lock; the open file descriptor holds it.

        Returns:
            The descriptor. None: somebody else has the lock, or the folder is gone.
        """
        try:
            fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | _OURS, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A hub that ended between the two calls has removed the file that is locked now.
            current = os.path.samestat(os.fstat(fd), os.lstat(self.lock_file))
        except OSError:
            current = False
        if current:
            return fd
        os.close(fd)
        return None

    def has_hub(self) -> bool:
        """Whether a hub lives here, asked of the lock and so true even after a SIGKILL."""
        try:
            fd = os.open(self.lock_file, os.O_RDWR | _OURS)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def prepare(self) -> bool:
        """Readies the folder for a hub to be started in it, so that no viewer clears it away.

        Returns:
            False if a hub lives here, or somebody else is about to start or clear one.

        Raises:
            OSError: The folder can't be made.
        """
        self.path.mkdir(mode=0o700, exist_ok=True)
        lock = self.try_lock()
        if lock is None:
            return False
        self.info_file.unlink(missing_ok=True)
        os.close(lock)
        return True

    def clear(self) -> None:
        """Removes what a killed hub has left, unless a successor is there or to be expected."""
        with contextlib.suppress(OSError):
            if time.time() - self.state_file.stat().st_mtime < SUCCESSOR_S:
                return
        lock = self.try_lock()
        if lock is None:
            return
        if self.read_info() is not None:
            self.remove()
        os.close(lock)

    def remove(self) -> None:
        """Removes the folder and what a hub puts into it; anything else stays, and so it does."""
        for name in (*HUB_FILES, *_OTHER_FILES):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()


def host_name() -> str:
    """This host's name, without its domain; ranks and hubs compare theirs."""
    return socket.gethostname().split(".")[0]


def runtime_dir() -> Path:
    """The runtime directory, made if need be.

    Raises:
        RuntimeDirError: It can't be made or written, or belongs to somebody else.
    """
    path = runtime_path()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeDirError(
            f"cannot make the runtime directory {path}: {error.strerror}; "
            "set DPWATCH_RUNTIME_DIR to a directory you can write"
        ) from None
    # Who may only look sees the runs' names: their folders are closed.
    _check_private(path, 0o022)
    if not os.access(path, os.W_OK | os.X_OK):
        raise RuntimeDirError(
            f"cannot write the runtime directory {path}; "
            "set DPWATCH_RUNTIME_DIR to a directory you can write"
        )
    return path


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
    try:
        place.path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RuntimeDirError(f"cannot make {place.path}: {error.strerror}") from None
    place.check()
    return place


def _check_private(path: Path, closed: int) -> None:
    """Makes sure that a directory is one, this user's, and closed to others.

    It is looked at as it lies there, at every use: in a directory that others may write, such as
    /tmp, a link may have been put where ours is to be.

    Args:
        path: The directory.
        closed: The bits of its mode that must not be set.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise RuntimeDirError(f"cannot use {path}: {error.strerror}") from None
    if stat.S_ISLNK(status.st_mode):
        raise RuntimeDirError(
            f"the runtime directory {path} is a symbolic link; "
            "remove it, or set DPWATCH_RUNTIME_DIR to the directory itself"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeDirError(f"{path} is in the way: it is no directory; remove it")
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & closed:
        raise RuntimeDirError(
            f"the runtime directory {path} is open to other users; "
            "chmod 700 it, or set DPWATCH_RUNTIME_DIR to one of your own"
        )


def list_runs() -> Iterator[RunDir]:
    """Runs with a living hub, newest first; folders a killed hub left are cleared away.

    Raises:
        RuntimeDirError: As `runtime_dir`.
    """
    found: list[tuple[float, RunDir]] = []
    there = runtime_path()
    if not there.exists() and os.access(there.parent, os.W_OK | os.X_OK):
        return  # nobody has trained here yet; who only looks leaves nothing behind
    for path in runtime_dir().iterdir():
        place = RunDir(path)
        info = place.read_info() if _is_private(place) else None
        if info is None:
            continue
        if place.has_hub():
            found.append((info.started_wall_s, place))
        else:
            place.clear()
    for _, place in sorted(found, key=lambda item: item[0], reverse=True):
        yield place


def _is_private(place: RunDir) -> bool:
    try:
        place.check()
    except RuntimeDirError:
        return False
    return True


def clean_run_id(run_id: str) -> str:
    """A run id as a file name: letters, digits, `.`, `_` and `-`, at most 48 of them."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).strip("-.")[:RUN_ID_CHARS]
    return name or "run"


def runtime_path() -> Path:
    """Where the runtime directory lies, or would if it were made."""
    if named := os.environ.get("DPWATCH_RUNTIME_DIR"):
        return Path(named).absolute()
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        candidate = Path(xdg)
        if candidate.is_dir() and os.access(candidate, os.W_OK):
            return candidate / "dpwatch"
    return Path(tempfile.gettempdir()) / f"dpwatch-{os.getuid()}"
