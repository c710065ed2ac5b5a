"""Where views of runs that are over lie, for `dpwatch --last`, when their hubs have gone.

A hub that ends leaves its run's view beside the runs' folders, in a folder of one file a run. So
they stay as long as the runtime directory does: under XDG_RUNTIME_DIR until the user logs out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dpwatch.runtime.listing import usable_paths
from dpwatch.runtime.run_dir import RuntimeDirError, check_private

FOLDER = ".last"
"""No run's folder begins with a dot."""

DRAFT = ".new"
"""A file with this after its name is still being written."""

MOST_BYTES = 1 << 26
"""A larger view, of thousands of ranks, is not kept."""


class KeptView(msgspec.Struct, array_like=True):
    """A file's content: the protocol's version, and a whole `ViewMessage`."""

    version: int
    view: bytes


def folders() -> Iterator[Path]:
    """This user's, those that others can't read.

    Raises:
        RuntimeDirError: `DPWATCH_RUNTIME_DIR` names what can't be used.
    """
    for directory in usable_paths():
        with contextlib.suppress(RuntimeDirError):
            check_private(directory / FOLDER, 0o077)
            yield directory / FOLDER


def newest_first(*places: Path) -> list[Path]:
    """The files of these folders."""
    found = []
    for folder in places:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False) and not entry.name.endswith(DRAFT):
                        found.append((entry.stat().st_mtime_ns, Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)]
