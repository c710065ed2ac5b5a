"""A run's state as bytes: for a viewer that comes late, and for a hub's successor."""

from __future__ import annotations

import msgspec

from dpwatch.run.state.flush import flush
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.arrays import packed, unpacked


def encode(state: RunState) -> bytes:
    """A state as it travels to a viewer that comes late."""
    flush(state)
    return _encoder.encode(state)


def decode(data: bytes | memoryview) -> RunState:
    """A state that has travelled.

    Raises:
        msgspec.MsgspecError, RecursionError, UnicodeDecodeError: It is none.
    """
    return _decoder.decode(data)


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)
_decoder = msgspec.msgpack.Decoder(RunState, dec_hook=unpacked)
