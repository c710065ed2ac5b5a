"""Frames: round trips, and whatever a stranger may send."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.wire import codec
from dpwatch.wire.messages import (
    PROTOCOL_VERSION,
    Asked,
    Batch,
    Beat,
    ByCategory,
    Bye,
    Collective,
    DeviceInfo,
    Duration,
    Gpu,
    Hello,
    Memory,
    Stacks,
    Step,
    ThreadStack,
    Tick,
    Transfer,
    Unanswered,
)

EVERY_RECORD = [
    Hello(4, 1, "ddp", "gloo", [DeviceInfo("cpu", "cpu", None)]),
    Step(0, 3, 1, 2, loss=1.5),
    Memory(0, 3, 5, 9, ByCategory(params=5), ByCategory(params=5, grads=4), "ledger"),
    Collective(3, "all_reduce", "default", 4, 7, 1024, 10, 20),
    Duration(3, "all_reduce", "default", 4, 7, 1024, 12_345),
    Transfer(3, "reduce", 1, 0, 512, 99),
    Beat(3, "forward", rss_bytes=1),
    Gpu(0, 0.5, 60.0),
    Bye("failed", "why"),
    Tick(),
    Stacks(3, 99, [ThreadStack("MainThread", True, 7, ["a.py:1 f"], 0)], 1),
    Asked(3, [0, 2]),
    Unanswered(2, 4711, "T"),
]


def batch(records=(), version=PROTOCOL_VERSION):
    return Batch(version, "run", 1, "host", 2, 3, 4, 5, 6, list(records))


def test_every_record_survives_the_wire():
    assert codec.decode(codec.encode(batch(EVERY_RECORD))) == batch(EVERY_RECORD)


def test_newer_fields_at_the_end_are_ignored():
    fields = msgspec.msgpack.decode(codec.encode(batch([Tick()])))
    fields[-1][0].append("from the future")
    fields.append("too")
    assert codec.decode(msgspec.msgpack.encode(fields)) == batch([Tick()])


def test_another_version_is_named_even_when_nothing_else_fits():
    with pytest.raises(codec.WireError, match="version 7"):
        codec.decode(codec.encode(batch(version=7)))
    with pytest.raises(codec.WireError, match="version 8"):
        codec.decode(msgspec.msgpack.encode([8, {"all": "new"}]))


def test_a_frame_over_the_limit_is_refused_unread():
    with pytest.raises(codec.WireError, match="limit"):
        codec.decode(b"\x00" * (codec.MAX_FRAME_BYTES + 1))


def test_a_frame_that_nests_deeply_is_refused():
    with pytest.raises(codec.WireError, match="malformed"):
        codec.decode(b"\x91" * 100_000 + b"\x00")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_batch_or_a_wire_error(frame):
    with contextlib.suppress(codec.WireError):
        assert isinstance(codec.decode(frame), Batch)


@given(st.data())
def test_a_damaged_frame_is_a_batch_or_a_wire_error(data):
    frame = bytearray(codec.encode(batch(EVERY_RECORD)))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(codec.WireError):
        assert isinstance(codec.decode(bytes(frame)), Batch)
