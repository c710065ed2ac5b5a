"""Saves a hub's state to disk, so that its successor can continue if it is killed.

The file lies next to the sockets, so in memory if the runtime directory is. Frames after the last
checkpoint are lost, and counted by the gaps in the ranks' frame numbers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dpwatch.hub.processes import runs
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime.kept_runs import DRAFT
from dpwatch.wire.arrays import packed, unpacked
from dpwatch.wire.messages import PROTOCOL_VERSION

EVERY_S = 1.0
SHARE = 0.02
"""Share of the hub's time that writing may take; a larger state is written less often."""

LONGEST_S = 0.1
"""If a write takes longer, which viewers would notice, checkpoints stop."""

_log = logging.getLogger("dpwatch.hub")


class Saved(msgspec.Struct, array_like=True):
    """Contents of the file."""

    version: int
    state: RunState


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)
_decoder = msgspec.msgpack.Decoder(Saved, dec_hook=unpacked)


def encoded(state: RunState) -> bytes:
    """Encodes a state for the file."""
    return _encoder.encode(Saved(PROTOCOL_VERSION, state))


def decoded(content: bytes) -> RunState:
    """Decodes the file's content.

    Raises:
        ValueError: It is invalid or of another protocol version.
    """
    try:
        saved = _decoder.decode(content)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"invalid state: {error}") from None
    if saved.version != PROTOCOL_VERSION:
        raise ValueError(f"state of protocol {saved.version}")
    return saved.state


def write_whole(path: Path, content: bytes) -> None:
    """Writes a private file atomically: readers see the old or the new content.

    Raises:
        OSError: It can't be written.
    """
    draft = path.with_name(path.name + DRAFT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(draft, flags, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


class Checkpoint:
    """Saves the state of one run in a file, and restores it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._due: float | None = clock() + EVERY_S

    def restore(self, run_id: str, host: str, now_ns: int) -> RunState | None:
        """The state saved by a predecessor if the run still goes on here, else None.

        Liveness and progress of ranks are counted from `now_ns`, since there was no hub before.
        """
        try:
            state = decoded(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        mine = [rank for rank in state.ranks.values() if rank.host == host and rank.bye is None]
        if state.run_id != run_id or not any(runs(rank.pid) for rank in mine):
            return None
        for rank in state.ranks.values():
            if rank.bye is None:
                rank.seen_ns = rank.progress_ns = now_ns
        return state

    def save(self, state: RunState) -> None:
        """Writes the state if it is due."""
        if self._due is None or self._clock() < self._due:
            return
        began = self._clock()
        try:
            write_whole(self._path, encoded(state))
        except (OSError, OverflowError) as error:  # such as a full disk
            self._give_up(str(error))
            return
        took_s = self._clock() - began
        self._due = self._clock() + max(EVERY_S, took_s / SHARE)
        if took_s > LONGEST_S:
            self._give_up(f"writing one took {took_s:.2f} s")

    def _give_up(self, why: str) -> None:
        """Stops, and removes the file: a successor must not continue from an outdated state."""
        _log.warning("no more checkpoints of the state: %s", why)
        self._due = None
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
