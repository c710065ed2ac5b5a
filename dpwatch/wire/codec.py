"""Frames: encoding a `Batch`, and decoding what a stranger may have sent."""

from __future__ import annotations

import msgspec

from dpwatch.wire.messages import PROTOCOL_VERSION, Batch

MAX_FRAME_BYTES = 1 << 20
"""A frame's limit, in the codec and as MAXMSGSIZE on every socket that takes frames in."""

MAX_RECORDS = 64
"""Records a sender puts into one frame."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_header = msgspec.msgpack.Decoder(list[msgspec.Raw])


class WireError(ValueError):
    """A frame that is no batch of this protocol version."""


def encode(batch: Batch) -> bytes:
    """Encodes a batch as one frame."""
    return _encoder.encode(batch)


def decode(frame: bytes) -> Batch:
    """Decodes and checks a frame.

    Raises:
        WireError: It is too large, malformed, or of another protocol version.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}")
    try:
        batch = _decoder.decode(frame)
    # A hostile frame can also nest too deep or hold broken text.
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        version = _version_of(frame)
        if version not in (None, PROTOCOL_VERSION):
            raise WireError(_other_version(version)) from None
        raise WireError(f"malformed frame: {error}") from None
    if batch.version != PROTOCOL_VERSION:
        raise WireError(_other_version(batch.version))
    return batch


def _other_version(version: int | None) -> str:
    return f"frame of protocol version {version}, this is version {PROTOCOL_VERSION}"


def _version_of(frame: bytes) -> int | None:
    try:
        fields = _header.decode(frame)
        return msgspec.msgpack.decode(fields[0], type=int) if fields else None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
