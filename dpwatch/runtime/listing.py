"""Finding runs: those with a living hub, those that want one, and what is only left over.

Ranks and hubs that were killed, or could start no hub, leave folders behind. These are removed on a
thread of their own: a disk may take a millisecond for each, and there may be thousands.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dpwatch.runtime.paths import runtime_dir, runtime_path, runtime_paths
from dpwatch.runtime.run_dir import RunDir, RuntimeDirError, check_private

EMPTY_S = 10.0
"""A folder that has been empty for so long is nobody's any more: a rank would have a hub by now, or
makes it anew."""

NEVER_S = 60.0
"""Nor is one in which a hub was to be started so long ago."""


def list_runs(on_wanting: Callable[[RunDir], None] = lambda place: None) -> list[RunDir]:
    """Runs with a living hub, newest first; what dead ones have left is cleared away.

    Args:
        on_wanting: Called with each run's folder that has no hub, but a request for one.

    Raises:
        RuntimeDirError: `DPWATCH_RUNTIME_DIR` names what can't be used.
    """
    found: list[tuple[float, RunDir]] = []
    for directory in usable_paths():
        for place in _folders(directory):
            info = place.read_info() if _is_private(place) else None
            if info is None:
                if place.wanted_file.exists():
                    on_wanting(place)
            elif place.has_hub():
                found.append((info.started_wall_s, place))
            else:
                place.clear()
    return [place for _, place in sorted(found, key=lambda item: item[0], reverse=True)]


def usable_paths() -> list[Path]:
    """The runtime directories that are there, this user's and closed to others.

    Raises:
        RuntimeDirError: `DPWATCH_RUNTIME_DIR` names one that isn't.
    """
    if os.environ.get("DPWATCH_RUNTIME_DIR"):
        there = runtime_path()
        if not there.exists() and os.access(there.parent, os.W_OK | os.X_OK):
            return []  # nobody has trained here yet; who only looks leaves nothing behind
        return [runtime_dir()]
    found = []
    for path in runtime_paths():
        with contextlib.suppress(RuntimeDirError):
            check_private(path, 0o022)
            found.append(path)
    return found


def _folders(directory: Path) -> list[RunDir]:
    """Runs' folders that have something in them; old ones that haven't are cleared away."""
    found = []
    old = time.time() - EMPTY_S
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.path in _clearing:
                continue
            with contextlib.suppress(OSError):
                if not _is_run_s(entry):
                    continue
                if _has(entry.path, "run.json") or _has(entry.path, "wanted"):
                    found.append(RunDir(Path(entry.path)))
                elif entry.stat(follow_symlinks=False).st_mtime < old:
                    _clearing.add(entry.path)
    return found


class _Clearing:
    """Removes folders on a thread, which ends when there are none left, or with the process."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()
        self._thread: threading.Thread | None = None

    def __contains__(self, path: str) -> bool:
        return path in self._known

    def add(self, path: str) -> None:
        """Takes on a folder; once is enough, also where it can't be removed."""
        self._known.add(path)
        self._waiting.append(path)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="dpwatch-clearing", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._waiting:
            path = self._waiting.popleft()
            if clear(path):
                self._known.discard(path)


_clearing = _Clearing()


def clear(path: str) -> bool:
    """Removes a run's folder that is empty, or has only what a hub that never began has left.

    Returns:
        Whether it is gone.
    """
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        # Not so where it is somebody else's, or a rank or a hub has come to it meanwhile.
        begun = _has(path, "run.json") or _has(path, "wanted")
        if not begun and _is_older(f"{path}/lock", NEVER_S):
            RunDir(Path(path)).remove_if_idle()
        return not os.path.isdir(path)
    return True


def clear_all(directory: Path, most_s: float) -> None:
    """Removes what is left over in a runtime directory, for so long at most.

    A hub does so when its run is over and nobody waits for it.
    """
    until = time.monotonic() + most_s
    old = time.time() - EMPTY_S
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if time.monotonic() > until:
                return
            with contextlib.suppress(OSError):
                if _is_run_s(entry) and entry.stat(follow_symlinks=False).st_mtime < old:
                    clear(entry.path)


def _is_run_s(entry: os.DirEntry[str]) -> bool:
    """Whether it may be a run's folder: their names do not begin with a dot."""
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def _is_older(path: str, age_s: float) -> bool:
    try:
        return time.time() - os.lstat(path).st_mtime > age_s
    except OSError:
        return False


def _has(path: str, name: str) -> bool:
    try:
        os.lstat(f"{path}/{name}")
    except OSError:
        return False
    return True


def _is_private(place: RunDir) -> bool:
    try:
        place.check()
    except RuntimeDirError:
        return False
    return True
