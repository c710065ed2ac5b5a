"""Saves the views of finished runs, for `dpwatch --last`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from dpwatch.hub.checkpoint import write_whole
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.derive.verdict import ended
from dpwatch.run.derive.view_messages import ViewWriter
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime.kept_runs import FOLDER, MOST_BYTES, KeptView, newest_first
from dpwatch.runtime.run_dir import FALLBACK, check_private
from dpwatch.wire.messages import PROTOCOL_VERSION

MOST = 8
"""Number of runs kept."""


def save(directory: Path, state: RunState) -> None:
    """Saves the view of a run, unless it has not ended or the disk is full.

    Args:
        directory: The run's runtime directory.
        state: State of the run.
    """
    if not ended(state) or directory.name.startswith(FALLBACK):  # removed with its last run
        return
    writer = ViewWriter(0)
    writer.update(state, summarize(state), curves=True)
    content = msgspec.msgpack.encode(KeptView(PROTOCOL_VERSION, writer.message(0)))
    folder = directory / FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        check_private(folder, 0o077)
        if len(content) <= MOST_BYTES:
            write_whole(folder / state.run_id, content)
        for path in newest_first(folder)[MOST:]:
            path.unlink(missing_ok=True)
