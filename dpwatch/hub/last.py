"""Runs that are over, kept for `dpwatch --last` when their hubs have gone.

A hub that ends leaves its run's state beside the runs' folders, in a folder of one file a run. So
they stay as long as the runtime directory does: under XDG_RUNTIME_DIR until the user logs out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dpwatch.hub.checkpoint import DRAFT, decoded, encoded, write_whole
from dpwatch.run.derive.summarize import view
from dpwatch.run.derive.verdict import ended
from dpwatch.run.model.snapshot import RunView
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime.listing import usable_paths
from dpwatch.runtime.run_dir import FALLBACK, RuntimeDirError, check_private, read_small

FOLDER = ".last"
"""No run's folder begins with a dot."""

MOST = 8
"""Runs that are kept."""

MOST_BYTES = 1 << 26
"""A larger state, of thousands of ranks, is not kept."""


def keep(directory: Path, state: RunState) -> None:
    """Keeps a run that is over; does nothing for one that goes on, or on a full disk.

    Args:
        directory: The runtime directory that it lies in.
        state: All that its hub knows.
    """
    if not ended(state) or directory.name.startswith(FALLBACK):  # that one goes with its last run
        return
    folder = directory / FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        check_private(folder, 0o077)
        content = encoded(state)
        if len(content) <= MOST_BYTES:
            write_whole(folder / state.run_id, content)
        for path in _newest_first(folder)[MOST:]:
            path.unlink(missing_ok=True)


def kept() -> list[RunView]:
    """Runs that are over, in any order.

    Raises:
        RuntimeDirError: `DPWATCH_RUNTIME_DIR` names what can't be used.
    """
    return [found for path in _newest_first(*_folders()) if (found := _read(path)) is not None]


def _folders() -> Iterator[Path]:
    for directory in usable_paths():
        with contextlib.suppress(RuntimeDirError):
            check_private(directory / FOLDER, 0o077)
            yield directory / FOLDER


def _newest_first(*folders: Path) -> list[Path]:
    found = []
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False) and not entry.name.endswith(DRAFT):
                        found.append((entry.stat().st_mtime_ns, Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> RunView | None:
    """What one file says, None where it is another version's or none of ours."""
    try:
        return view(decoded(read_small(path, MOST_BYTES)), "closed")
    except Exception:  # noqa: BLE001 - states may contradict themselves
        return None
