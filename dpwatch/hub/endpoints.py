"""Where a hub is found: its sockets' paths, `run.json` and the lock, which somebody may take away.

A cleaner of /tmp, a second program that binds the same path (which libzmq lets it, silently), or a
whole directory removed: ranks that are connected would go on sending to a hub that no viewer finds.
So the hub looks whether all is as it left it, and recreates it, unless another hub has come.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import zmq

from dpwatch.runtime.paths import RunDir, RunInfo
from dpwatch.wire import transport

PLACES = 8
"""How often a hub makes its place anew; who is stronger than that may have it."""

_Mark = tuple[int, int]


class Doors:
    """A hub's place, once its sockets are bound.

    Args:
        sockets: By endpoint.
        info: For `run.json`, which is written now.

    Attributes:
        shut: No new connections are taken.
    """

    def __init__(self, place: RunDir, sockets: dict[str, zmq.Socket[bytes]], info: RunInfo) -> None:
        self.shut = False
        self._place = place
        self._sockets = sockets
        self._info = info
        self._times = 0
        self._lock: int | None = None
        self._lock_mark = _mark(place.lock_file)
        place.write_info(info)
        self._marks = self._look()

    def _look(self) -> list[_Mark | None]:
        paths = [Path(endpoint.removeprefix("ipc://")) for endpoint in self._sockets]
        return [_mark(path) for path in (*paths, self._place.info_file)]

    @property
    def taken_away(self) -> bool:
        """Whether something is not where it was put."""
        return not self.shut and self._look() != self._marks

    def make_anew(self) -> None:
        """Puts everything in its place again.

        Raises:
            OSError: It can't be, or another hub has come; or this was done too often already.
            zmq.ZMQError: A path can't be bound.
        """
        self._times += 1
        if self._times > PLACES:
            raise OSError(f"{PLACES} times already")
        place = self._place
        place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.check()
        if _mark(place.lock_file) != self._lock_mark:  # ours has gone with the folder
            lock = place.try_lock()
            if lock is None:
                raise OSError("another hub has come")
            self._let_go()
            self._lock, self._lock_mark = lock, _mark(place.lock_file)
        for name in ("in", "ask"):
            with contextlib.suppress(FileNotFoundError):
                (place.path / name).unlink()
        for endpoint, socket in self._sockets.items():
            # The old listener stays: unbinding it would remove the new one's path.
            transport.bind(socket, endpoint)
        place.write_info(self._info)
        self._marks = self._look()

    def hang_up(self) -> None:
        """Ends all connections (libzmq can't end some) and takes no new ones for now.

        Ranks and viewers come back by themselves; what was under way from them is counted as lost.
        """
        self.shut = True
        for endpoint, socket in self._sockets.items():
            socket.unbind(endpoint)

    def open_again(self) -> None:
        """Takes connections again."""
        for endpoint, socket in self._sockets.items():
            transport.bind(socket, endpoint)
        self._marks = self._look()
        self.shut = False

    def remove(self) -> None:
        """Clears the place away, at the hub's end."""
        self._place.remove()
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _mark(path: Path) -> _Mark | None:
    """What lies there, to be known again."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
