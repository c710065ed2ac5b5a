"""Another host's run, mirrored in a folder here; the private folder all these lie in."""

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
"""Short: paths of sockets within are bounded."""

OWNER = "owner"

GREETING_S = 10.0
"""How long a hub may take to greet over a slow connection."""


class Mirror:
    """A remote run's folder here: `run.json`, a lock that is held, forwarded sockets.

    Attributes:
        forwarded: The sockets are here, …
        speaks: … and something has come through one of them.

    Raises:
        OSError: It can't be made.
    """

    def __init__(self, folder: Path, remote: Path, info: RunInfo, host: str) -> None:
        self.remote = remote
        self.info = info
        self.forwarded = False
        self.speaks = False
        self.place = RunDir(folder / remote.name, host)
        if len(os.fsencode(self.place.path / "ask")) > IPC_PATH_BYTES:
            raise OSError(f"{self.place.path} is too long for a unix socket")
        self.place.path.mkdir(mode=0o700)
        lock = self.place.try_lock()
        if lock is None:
            raise OSError(f"{self.place.path} is somebody else's")
        self._lock_fd = lock
        self.place.write_info(info)

    def told(self, info: RunInfo) -> None:
        """What `run.json` says there now; another hub's sockets have to be forwarded anew."""
        if info != self.info:
            self.info, self.forwarded, self.speaks = info, False, False
            self.place.write_info(info)

    @property
    def way(self) -> str:
        """The socket's path here and there, as `-L` takes them."""
        return f"{self.place.path / 'ask'}:{self.remote / 'ask'}"

    def hangs_up(self) -> bool:
        """Whether the far end hangs up where a hub would greet; one that is slow does neither.

        An ssh server that forwards no sockets says so only when one is used first.
        """
        if not self.speaks:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as trial:
                trial.settimeout(GREETING_S)
                trial.connect(os.fspath(self.place.path / "ask"))
                self.speaks = trial.recv(1) != b""
                return not self.speaks
        return False

    def close(self) -> None:
        """Removes the folder."""
        self.place.remove()
        os.close(self._lock_fd)


class Workspace:
    """A private folder that goes when it is closed, or else with the next one that is made.

    It is held by a lock: a viewer that is killed can't remove its own.
    """

    def __init__(self) -> None:
        parent = _parent()
        _clear_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock_fd = os.open(self.path / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Removes it and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def _parent() -> Path:
    """Where temporary files go; another place where a socket's path would become too long."""
    usual = Path(tempfile.gettempdir())
    short = Path("/tmp")
    room = IPC_PATH_BYTES - len(os.fsencode(usual / f"{PREFIX}12345678" / "123" / "ask"))
    return usual if room > RUN_ID_CHARS or not os.access(short, os.W_OK | os.X_OK) else short


def _clear_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # not ours, in use, or gone meanwhile
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            fd = os.open(path / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
