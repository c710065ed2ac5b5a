"""A run's directory: its contents, and how they are locked, read and removed."""

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
"""A `run.json` takes a few hundred bytes; a larger file is not one."""

_OURS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags for opening files here: never follow a link or block on a pipe put in their place."""

SUCCESSOR_S = 30.0
"""How long the state of a killed hub is kept for the hub that the ranks will start next."""

HUB_FILES = ("in", "ask", "ask-stacks", "ask-stacks.new")
"""Files a hub creates in its run's directory; the successor of a killed hub removes them."""

_OTHER_FILES = ("run.json", "run.new", "hub.log", "state", "state.new", "wanted", "lock")

FALLBACK = "dpwatch-run-"
"""Prefix of a directory that `dpwatch run` creates if the usual one is not usable."""


class RuntimeDirError(OSError):
    """The runtime directory cannot be used; the message says what to do."""


class RunInfo(msgspec.Struct, frozen=True):
    """`run.json`: what a viewer needs to follow a run.

    `session` is the session number of the `dpwatch run` on this host that started it, "" without
    one.
    """

    run_id: ranges.Word
    host: ranges.Word
    hub_pid: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    started_wall_s: Annotated[float, Meta(ge=0, le=1e11)]
    protocol: int = PROTOCOL_VERSION
    session: str = ""


class RunDir:
    """A run's directory: its sockets, its lock, its `run.json`.

    Attributes:
        ssh_host: The remote host whose run it mirrors, as ssh names it; "" for a local run.
    """

    def __init__(self, path: Path, ssh_host: str = "") -> None:
        self.path = path
        self.ssh_host = ssh_host
        self.run_id = path.name
        self.ingest = f"ipc://{path / 'in'}"
        self.ask = f"ipc://{path / 'ask'}"
        self.info_file = path / "run.json"
        self.lock_file = path / "lock"
        self.log_file = path / "hub.log"
        self.state_file = path / "state"
        self.stacks_file = path / "ask-stacks"
        self.wanted_file = path / "wanted"

    def read_info(self) -> RunInfo | None:
        """The contents of `run.json`, None if it does not exist yet or is unreadable."""
        try:
            return msgspec.json.decode(read_small(self.info_file), type=RunInfo)
        except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None

    def write_info(self, info: RunInfo) -> None:
        """Writes `run.json` atomically."""
        draft = self.info_file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OURS, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(info))
        draft.replace(self.info_file)

    def log(self, line: str) -> None:
        """Appends a line to `hub.log`, which may have been replaced since the last line."""
        fd = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OURS, 0o600)
        with open(fd, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")

    def check(self) -> None:
        """Checks that the directory exists, belongs to this user, and is closed to everybody else.

        Raises:
            RuntimeDirError: It is not.
        """
        check_private(self.path, 0o077)

    def try_lock(self) -> int | None:
        """Takes the hub's lock, which is held as long as the file descriptor is open.

        Returns:
            The descriptor. None if another process has the lock or the directory is gone.
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
        """Whether a hub is running here; checks the lock, so it is right even after a SIGKILL."""
        return is_locked(self.lock_file)

    def prepare(self) -> bool:
        """Prepares the directory for a new hub, so that no viewer removes it.

        Returns:
            False if a hub is running, or another process is about to start one or remove the
            directory.

        Raises:
            OSError: The directory cannot be created.
        """
        self.path.mkdir(mode=0o700, exist_ok=True)
        lock = self.try_lock()
        if lock is None:
            return False
        self.info_file.unlink(missing_ok=True)
        os.close(lock)
        return True

    def clear(self) -> None:
        """Removes what a killed hub has left, unless a successor is running or expected."""
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
        """Removes the directory, unless a hub is in it."""
        try:
            lock = self.try_lock()
        except OSError:
            return
        if lock is not None:
            self.remove()
            os.close(lock)

    def remove(self) -> None:
        """Removes a hub's files and the directory, which stays if it holds anything else."""
        for name in (*HUB_FILES, *_OTHER_FILES):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
            if self.path.parent.name.startswith(FALLBACK):
                self.path.parent.rmdir()


def is_locked(path: Path) -> bool:
    """Whether a living process holds that file's lock."""
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
    """Opens a file in a run's directory; follows no link and blocks on no pipe in its place."""
    return os.open(path, flags | _OURS, 0o600)


def read_small(path: Path, most: int = INFO_BYTES) -> bytes:
    """Reads a file of at most `most` bytes.

    Raises:
        OSError: It cannot be read, is too large, or is not a regular file.
    """
    fd = opened(path, os.O_RDONLY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise OSError(f"{path} is too large or not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)


def check_private(path: Path, closed: int) -> None:
    """Checks that a path is a directory, belongs to this user, and is closed to others.

    The path itself is checked, at every use: in a directory that others may write to, such as /tmp,
    somebody may have put a link in its place.

    Args:
        path: The directory.
        closed: Mode bits that must not be set.
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
        raise RuntimeDirError(f"{path} exists but is not a directory; remove it")
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & closed:
        raise RuntimeDirError(
            f"the runtime directory {path} is open to other users; "
            "chmod 700 it, or set DPWATCH_RUNTIME_DIR to one of your own"
        )
