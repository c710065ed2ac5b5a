"""Reads the views that hubs have saved of finished runs (`hub.last`)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dpwatch.run.model.snapshot import RunView
from dpwatch.run.model.view_message import ViewReader
from dpwatch.runtime.kept_runs import MOST_BYTES, KeptView, folders, newest_first
from dpwatch.runtime.run_dir import read_small
from dpwatch.wire.messages import PROTOCOL_VERSION

_decoder = msgspec.msgpack.Decoder(KeptView)


def last_runs() -> list[RunView]:
    """Views of finished runs, in any order.

    Raises:
        RuntimeDirError: The directory named by `DPWATCH_RUNTIME_DIR` can't be used.
    """
    paths = newest_first(*folders())
    return [found for path in paths if (found := _read(path)) is not None]


def _read(path: Path) -> RunView | None:
    """The view in a file, None if it is invalid or of another protocol version."""
    reader = ViewReader()
    try:
        kept = _decoder.decode(read_small(path, MOST_BYTES))
        if kept.version == PROTOCOL_VERSION:
            reader.read(kept.view)
    except Exception:  # noqa: BLE001 - the file may contain anything
        return None
    return reader.view and msgspec.structs.replace(reader.view, connection="closed")
