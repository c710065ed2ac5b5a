"""Requests for ranks' stacks: from a viewer to the hub, and from the hub to the ranks on its host.

A rank listens on nothing. The hub therefore writes the request atomically to a file in the run's
directory, and each rank checks with every heartbeat whether that file has changed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import msgspec

from dpwatch.wire.messages import Asked

STACKS_REQUEST = b"stacks"
"""First part of the request on a hub's `ask` socket; the second is a `StacksRequest`."""

MOST_RANKS = 4096
"""Ranks a request may name; a request for more of them is one for all."""

MOST_BYTES = 1 << 16
"""Longest request, and longest file, that is read."""


class StacksRequest(msgspec.Struct, array_like=True, frozen=True):
    """A viewer's request.

    Attributes:
        ranks: The ranks whose stacks are wanted; empty means every rank.
    """

    ranks: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=MOST_RANKS)]


_request = msgspec.msgpack.Decoder(StacksRequest)
_asked = msgspec.json.Decoder(Asked)


def encode_request(ranks: list[int]) -> bytes:
    """Encodes a request; one that names too many ranks becomes one for all."""
    return msgspec.msgpack.encode(StacksRequest([] if len(ranks) > MOST_RANKS else ranks))


def decode_request(payload: bytes) -> StacksRequest | None:
    """Decodes a viewer's request, None if it is invalid."""
    if len(payload) > MOST_BYTES:
        return None
    try:
        return _request.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def write_request(file: Path, asked: Asked) -> None:
    """Writes the file that ranks poll, readable by its owner only.

    Raises:
        OSError: It cannot be written.
    """
    draft = file.with_name(file.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as opened:
        opened.write(msgspec.json.encode(asked))
    draft.replace(file)


class RequestFile:
    """A rank's view of that file. What it holds at first was meant for earlier processes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = self._signature()

    def changed(self) -> Asked | None:
        """The new request, if there is one; takes a few microseconds if there is none."""
        signature = self._signature()
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            with self._file.open("rb") as opened:
                return _asked.decode(opened.read(MOST_BYTES))
        except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None

    def _signature(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
