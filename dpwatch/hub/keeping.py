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
from dpwatch.hub.series import packed, unpacked
from dpwatch.hub.state import RunState
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
            saved = _decoder.decode(self._path.read_bytes())
        except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None
        state = saved.state
        mine = [rank for rank in state.ranks.values() if rank.host == host and rank.bye is None]
        if saved.version != PROTOCOL_VERSION or state.run_id != run_id:
            return None
        if not any(runs(rank.pid) for rank in mine):
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
        draft = self._path.with_suffix(".new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(draft, flags, 0o600)
            with open(fd, "wb") as file:
                file.write(_encoder.encode(Saved(PROTOCOL_VERSION, state)))
            draft.replace(self._path)
        except OSError as error:  # a full disk, say: then a successor begins anew
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
