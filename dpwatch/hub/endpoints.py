"""The files by which a hub is found: socket paths, `run.json` and the lock.

They may disappear: a cleaner of /tmp removes them, a second program binds the same path (which
libzmq silently allows), or the whole directory is deleted. Connected ranks would then send to a hub
that no viewer finds. So the hub checks its files, and recreates them unless another hub runs.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import zmq

from dpwatch.runtime.paths import RunDir, RunInfo
from dpwatch.wire import transport

MOST_RECREATIONS = 8
"""How often a hub recreates its files before it gives up."""

_Mark = tuple[int, int]


class Endpoints:
    """The files of a hub whose sockets are bound.

    Args:
        place: The run's directory.
        sockets: Bound sockets by endpoint.
        info: Content of `run.json`, which is written at once.

    Attributes:
        shut: Whether new connections are refused.
    """

    def __init__(self, place: RunDir, sockets: dict[str, zmq.Socket[bytes]], info: RunInfo) -> None:
        self.shut = False
        self._place = place
        self._sockets = sockets
        self._info = info
        self._recreations = 0
        self._lock: int | None = None
        self._lock_mark = _mark(place.lock_file)
        place.write_info(info)
        self._marks = self._scan()

    def _scan(self) -> list[_Mark | None]:
        paths = [Path(endpoint.removeprefix("ipc://")) for endpoint in self._sockets]
        return [_mark(path) for path in (*paths, self._place.info_file)]

    @property
    def is_displaced(self) -> bool:
        """Whether a file was removed or replaced."""
        return not self.shut and self._scan() != self._marks

    def recreate(self) -> None:
        """Recreates all files.

        Raises:
            OSError: It fails, another hub runs, or the files were recreated too often already.
            zmq.ZMQError: A path can't be bound.
        """
        self._recreations += 1
        if self._recreations > MOST_RECREATIONS:
            raise OSError(f"already recreated {MOST_RECREATIONS} times")
        place = self._place
        place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.check()
        if _mark(place.lock_file) != self._lock_mark:  # the lock file is another one
            lock = place.try_lock()
            if lock is None:
                raise OSError("another hub serves this run")
            self._release_lock()
            self._lock, self._lock_mark = lock, _mark(place.lock_file)
        for name in ("in", "ask"):
            with contextlib.suppress(FileNotFoundError):
                (place.path / name).unlink()
        for endpoint, socket in self._sockets.items():
            # The old listener stays: unbinding it would remove the new one's path.
            transport.bind(socket, endpoint)
        place.write_info(self._info)
        self._marks = self._scan()

    def disconnect_all(self) -> None:
        """Closes all connections (libzmq can't close single ones), and refuses new ones for now.

        Ranks and viewers reconnect by themselves; frames in flight are counted as lost.
        """
        self.shut = True
        for endpoint, socket in self._sockets.items():
            socket.unbind(endpoint)

    def reopen(self) -> None:
        """Accepts connections again."""
        for endpoint, socket in self._sockets.items():
            transport.bind(socket, endpoint)
        self._marks = self._scan()
        self.shut = False

    def remove(self) -> None:
        """Removes the files, at the hub's end."""
        self._place.remove()
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _mark(path: Path) -> _Mark | None:
    """Identifies the file at a path by device and inode; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
