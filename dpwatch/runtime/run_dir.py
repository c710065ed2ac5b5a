"""A run's folder: what is in it, and how it is held, read and taken away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import ranges
from dpwatch.wire.messages import PROTOCOL_VERSION

INFO_BYTES = 1 << 16
"""A `run.json` is some hundred bytes; what is larger is none."""

_OURS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""How files here are opened: no link is followed, and no pipe put in their place waited for."""

SUCCESSOR_S = 30.0
"""How long a killed hub's state is left for the one that the ranks will start."""

HUB_FILES = ("in", "out", "ask", "ask-stacks", "ask-stacks.new")
"""What a hub makes in its run's folder and a successor of a killed one clears away."""

_OTHER_FILES = ("run.json", "run.new", "hub.log", "state", "state.new", "wanted", "lock")

FALLBACK = "dpwatch-run-"
"""Begins the name of a directory that `dpwatch run` made, for want of the usual one."""


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
    """A run's folder: its sockets, its lock, its `run.json`.

    Attributes:
        ssh_host: The host whose run it mirrors, as ssh knows it; "" for a run of this host.
    """

    def __init__(self, path: Path, ssh_host: str = "") -> None:
        self.path = path
        self.ssh_host = ssh_host
        self.run_id = path.name
        self.ingest = f"ipc://{path / 'in'}"
        self.publish = f"ipc://{path / 'out'}"
        self.ask = f"ipc://{path / 'ask'}"
        self.info_file = path / "run.json"
        self.lock_file = path / "lock"
        self.log_file = path / "hub.log"
        self.state_file = path / "state"
        self.stacks_file = path / "ask-stacks"
        self.wanted_file = path / "wanted"

    def read_info(self) -> RunInfo | None:
        """What `run.json` says, None while no hub has written one (or it is unreadable)."""
        try:
            return msgspec.json.decode(read_small(self.info_file), type=RunInfo)
        except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None

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
        check_private(self.path, 0o077)

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
        return is_locked(self.lock_file)

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

    def remove_if_idle(self) -> None:
        """Removes the folder, unless a hub is in it."""
        try:
            lock = self.try_lock()
        except OSError:
            return
        if lock is not None:
            self.remove()
            os.close(lock)

    def remove(self) -> None:
        """Removes the folder and what a hub puts into it; anything else stays, and so it does."""
        for name in (*HUB_FILES, *_OTHER_FILES):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
            if self.path.parent.name.startswith(FALLBACK):
                self.path.parent.rmdir()


def is_locked(path: Path) -> bool:
    """Whether a process that lives holds that file's lock."""
    try:
        fd = opened(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def opened(path: Path, flags: int) -> int:
    """Opens a file of ours; no link is followed, and no pipe in its place waited for."""
    return os.open(path, flags | _OURS, 0o600)


def read_small(path: Path, most: int = INFO_BYTES) -> bytes:
    """What a file of at most so many bytes holds.

    Raises:
        OSError: It can't be read, or is no such file.
    """
    fd = opened(path, os.O_RDONLY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise OSError(f"{path} is no file of ours")
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)


def check_private(path: Path, closed: int) -> None:
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
