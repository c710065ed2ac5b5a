"""A hub's state on disk, for its successor: a hub that is killed takes little of the run with it.

Written now and then beside the sockets, so in memory where the runtime directory is. What came
after the last writing is missed, and counted by the gaps in the ranks' numbers.
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
"""Of the hub's time, that writing may take; a larger state is written more seldom."""

LONGEST_S = 0.1
"""A state that takes longer is not written any more: viewers would notice."""

_log = logging.getLogger("dpwatch.hub")


class Saved(msgspec.Struct, array_like=True):
    """What the file holds."""

    version: int
    state: RunState


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)
_decoder = msgspec.msgpack.Decoder(Saved, dec_hook=unpacked)


def encoded(state: RunState) -> bytes:
    """A state as it lies in a file."""
    return _encoder.encode(Saved(PROTOCOL_VERSION, state))


def decoded(content: bytes) -> RunState:
    """A file's state.

    Raises:
        ValueError: It is none, or another version's.
    """
    try:
        saved = _decoder.decode(content)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"no state: {error}") from None
    if saved.version != PROTOCOL_VERSION:
        raise ValueError(f"of protocol {saved.version}")
    return saved.state


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file of this user's alone: a reader sees all of it or what was there before.

    Raises:
        OSError: It can't be written.
    """
    draft = path.with_name(path.name + DRAFT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(draft, flags, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


class Keeper:
    """Keeps one run's state in one file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._due: float | None = clock() + EVERY_S

    def restored(self, run_id: str, host: str, now_ns: int) -> RunState | None:
        """What a predecessor left of a run that still goes on; None if there is nothing such.

        Nobody is held to have been silent or to have stood still while there was no hub.
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

    def keep(self, state: RunState) -> None:
        """Writes the state, if it is time to."""
        if self._due is None or self._clock() < self._due:
            return
        began = self._clock()
        try:
            write_whole(self._path, encoded(state))
        except (OSError, OverflowError) as error:  # a full disk: then a successor begins anew
            self._give_up(str(error))
            return
        took_s = self._clock() - began
        self._due = self._clock() + max(EVERY_S, took_s / SHARE)
        if took_s > LONGEST_S:
            self._give_up(f"writing it takes {took_s:.2f} s")

    def _give_up(self, why: str) -> None:
        """What is there would grow old; without it a successor begins anew."""
        _log.warning("the state is not kept for a successor: %s", why)
        self._due = None
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
