"""Finds runs: those with a running hub, those that request one, and leftovers.

Killed ranks and hubs, and ranks that could not start a hub, leave directories behind. These are
removed on a thread of their own: one removal may take a millisecond, and there may be thousands.
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
"""Age from which an empty directory is abandoned: its rank would have a hub by now, or will
recreate it."""

NEVER_S = 60.0
"""Age from which a directory is abandoned in which a hub never came up."""


def list_runs(on_wanting: Callable[[RunDir], None] = lambda place: None) -> list[RunDir]:
    """Runs with a running hub, newest first; removes what dead ones have left.

    Args:
        on_wanting: Called with the directory of each run that has no hub but requests one.

    Raises:
        RuntimeDirError: `DPWATCH_RUNTIME_DIR` names an unusable directory.
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
    """The runtime directories that exist, belong to this user, and are closed to others.

    Raises:
        RuntimeDirError: `DPWATCH_RUNTIME_DIR` names one that is not.
    """
    if os.environ.get("DPWATCH_RUNTIME_DIR"):
        there = runtime_path()
        if not there.exists() and os.access(there.parent, os.W_OK | os.X_OK):
            return []  # nobody has trained here yet; listing must not create it
        return [runtime_dir()]
    found = []
    for path in runtime_paths():
        with contextlib.suppress(RuntimeDirError):
            check_private(path, 0o022)
            found.append(path)
    return found


def _folders(directory: Path) -> list[RunDir]:
    """Run directories that are in use; old empty ones are removed."""
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
    """Removes directories on a thread, which ends when there are none left, or with the process."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()
        self._thread: threading.Thread | None = None

    def __contains__(self, path: str) -> bool:
        return path in self._known

    def add(self, path: str) -> None:
        """Queues a directory for removal, once, even if it then cannot be removed."""
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
    """Removes a run's directory that is empty, or holds only leftovers of a hub that never came up.

    Returns:
        Whether it is gone.
    """
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        # Keep it if it is another user's, or if a rank or a hub has started to use it.
        begun = _has(path, "run.json") or _has(path, "wanted")
        if not begun and _is_older(f"{path}/lock", NEVER_S):
            RunDir(Path(path)).remove_if_idle()
        return not os.path.isdir(path)
    return True


def clear_all(directory: Path, most_s: float) -> None:
    """Removes leftovers in a runtime directory, for at most `most_s` seconds.

    A hub does so when its run has ended and nobody waits for it.
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
    """Whether an entry may be a run's directory: their names do not start with a dot."""
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
