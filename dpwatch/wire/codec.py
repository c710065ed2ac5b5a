"""Encodes a `Batch` as a frame, and decodes frames from untrusted senders."""

from __future__ import annotations

import msgspec

from dpwatch.wire import validation
from dpwatch.wire.messages import MAX_RECORDS, PROTOCOL_VERSION, AnyRecord, Batch, Refused

__all__ = ["MAX_FRAME_BYTES", "MAX_RECORDS", "VersionError", "WireError", "decode", "encode"]

MAX_FRAME_BYTES = 1 << 20
"""Limit of a frame, in the codec and as MAXMSGSIZE on every socket that receives frames."""

_HOSTILE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding untrusted bytes may raise: they can also be nested too deep or hold invalid
UTF-8."""

_ERROR_CHARS = 200

_RECORDS = Batch.__struct_fields__.index("records")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_header = msgspec.msgpack.Decoder(list[msgspec.Raw])
_records = msgspec.msgpack.Decoder(list[msgspec.Raw])
_record = msgspec.msgpack.Decoder(AnyRecord)


class WireError(ValueError):
    """The frame is not a batch of this protocol version."""


class VersionError(WireError):
    """The frame has another protocol version.

    Attributes:
        version: That version.
    """

    def __init__(self, version: int) -> None:
        super().__init__(f"frame of protocol version {version}, this is version {PROTOCOL_VERSION}")
        self.version = version


def encode(batch: Batch) -> bytes:
    """Encodes a batch as one frame."""
    return _encoder.encode(batch)


def decode(frame: bytes) -> Batch:
    """Decodes and validates a frame.

    Returns:
        The batch. An invalid record is replaced by `Refused`, so that it costs only itself.

    Raises:
        WireError: The frame is too large, malformed, or of another protocol version.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}")
    try:
        batch = _decoder.decode(frame)
    except _HOSTILE as error:
        version = _version_of(frame)
        if version is not None and version != PROTOCOL_VERSION:
            raise VersionError(version) from None
        batch = _piecemeal(frame, error)
    if batch.version != PROTOCOL_VERSION:
        raise VersionError(batch.version)
    if found := validation.faults(batch):
        records = [Refused(found[i]) if i in found else r for i, r in enumerate(batch.records)]
        batch = msgspec.structs.replace(batch, records=records)
    return batch


def _piecemeal(frame: bytes, error: Exception) -> Batch:
    """Decodes the frame record by record, replacing records that do not decode."""
    refusal = WireError(f"malformed frame: {describe_error(error)}")
    try:
        fields = _header.decode(frame)
        records = _records.decode(fields[_RECORDS])
        if len(records) > MAX_RECORDS:
            raise refusal
        fields[_RECORDS] = msgspec.Raw(b"\x90")
        batch = _decoder.decode(msgspec.msgpack.encode(fields))
    except (*_HOSTILE, IndexError):
        raise refusal from None
    return msgspec.structs.replace(batch, records=[_decoded(each) for each in records])


def _decoded(record: msgspec.Raw) -> AnyRecord:
    try:
        decoded: AnyRecord = _record.decode(record)
    except _HOSTILE as error:
        return Refused(describe_error(error))
    return decoded


def describe_error(error: Exception) -> str:
    """Describes an error about untrusted bytes in one short line, with those bytes escaped."""
    text = str(error).encode("unicode_escape", "replace").decode("ascii", "replace")
    return text if len(text) <= _ERROR_CHARS else f"{text[:_ERROR_CHARS]}..."


def _version_of(frame: bytes) -> int | None:
    try:
        fields = _header.decode(frame)
        return msgspec.msgpack.decode(fields[0], type=int) if fields else None
    except _HOSTILE:
        return None
