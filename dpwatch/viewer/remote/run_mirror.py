"""Local directories that mirror runs of other hosts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from dpwatch.runtime.paths import IPC_PATH_BYTES, RUN_ID_CHARS, RunDir, RunInfo

PREFIX = "dpw-"
"""Short, since the length of socket paths is limited."""

OWNER = "owner"

GREETING_S = 10.0
"""How long a hub may take to send its ZMTP greeting over a slow connection."""


class RunMirror:
    """Local directory of a remote run, with `run.json`, a lock that is held, and its socket.

    Attributes:
        forwarded: Whether ssh forwards the socket.
        has_answered: Whether the hub has answered through it.

    Raises:
        OSError: The directory can't be created.
    """

    def __init__(self, folder: Path, remote: Path, info: RunInfo, host: str) -> None:
        self.remote = remote
        self.info = info
        self.forwarded = False
        self.has_answered = False
        self.place = RunDir(folder / remote.name, host)
        if len(os.fsencode(self.place.path / "ask")) > IPC_PATH_BYTES:
            raise OSError(f"{self.place.path} is too long for a unix socket")
        self.place.path.mkdir(mode=0o700)
        lock = self.place.try_lock()
        if lock is None:
            raise OSError(f"{self.place.path} is in use")
        self._lock_fd = lock
        self.place.write_info(info)

    def update_info(self, info: RunInfo) -> None:
        """Updates `run.json`; another hub's socket has to be forwarded again."""
        if info != self.info:
            self.info, self.forwarded, self.has_answered = info, False, False
            self.place.write_info(info)

    @property
    def forwarding(self) -> str:
        """Local and remote path of the socket, in the format of `ssh -L`."""
        return f"{self.place.path / 'ask'}:{self.remote / 'ask'}"

    def is_refused(self) -> bool:
        """Whether the remote end closes the connection instead of sending a hub's greeting.

        An ssh server that forbids forwarding sockets refuses only the first use. A slow hub does
        neither and counts as working.
        """
        if not self.has_answered:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as trial:
                trial.settimeout(GREETING_S)
                trial.connect(os.fspath(self.place.path / "ask"))
                self.has_answered = trial.recv(1) != b""
                return not self.has_answered
        return False

    def close(self) -> None:
        """Removes the directory."""
        self.place.remove()
        os.close(self._lock_fd)


class Workspace:
    """A private directory for mirrors, removed when closed.

    A lock marks it as in use. If its viewer is killed, the next viewer removes it.
    """

    def __init__(self) -> None:
        parent = _parent()
        _clear_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock_fd = os.open(self.path / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Removes the directory and its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def _parent() -> Path:
    """The directory for temporary files, or /tmp if socket paths there would be too long."""
    usual = Path(tempfile.gettempdir())
    short = Path("/tmp")
    room = IPC_PATH_BYTES - len(os.fsencode(usual / f"{PREFIX}12345678" / "123" / "ask"))
    return usual if room > RUN_ID_CHARS or not os.access(short, os.W_OK | os.X_OK) else short


def _clear_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, in use, or already removed
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            fd = os.open(path / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
