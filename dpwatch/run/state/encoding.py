"""Encodes a run's state as msgpack, for other hubs and for viewers."""

from __future__ import annotations

import msgspec

from dpwatch.run.state.flush import flush
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.arrays import packed, unpacked


def encode(state: RunState) -> bytes:
    """Encodes a state, after flushing it."""
    flush(state)
    return _encoder.encode(state)


def decode(data: bytes | memoryview) -> RunState:
    """Decodes a state.

    Raises:
        msgspec.MsgspecError, RecursionError, UnicodeDecodeError: The data is not a valid state.
    """
    return _decoder.decode(data)


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)
_decoder = msgspec.msgpack.Decoder(RunState, dec_hook=unpacked)
