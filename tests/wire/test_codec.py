"""Frames: round trips, and arbitrary input."""

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
    Refused,
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
    Refused("why"),
]


def batch(records=(), version=PROTOCOL_VERSION):
    return Batch(version, "run", 1, "host", 2, 3, 4, 5, 6, list(records))


def test_every_record_survives_the_wire():
    assert codec.decode(codec.encode(batch(EVERY_RECORD))) == batch(EVERY_RECORD)


def test_newer_fields_at_the_end_are_ignored():
    fields = msgspec.msgpack.decode(codec.encode(batch([Tick()])))
    fields[Batch.__struct_fields__.index("records")][0].append("from the future")
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


def refusals(*records):
    """Which of the records are refused on decoding."""
    decoded = codec.decode(codec.encode(batch(records))).records
    return [isinstance(each, Refused) for each in decoded]


OUT_OF_RANGE = [
    Step(0, 1 << 62, 1, 2),
    Step(10**9, 3, 1, 2),
    Step(0, -1, 1, 2),
    Step(0, 3, 2, 1),
    Step(0, 3, 1, 1 << 60),
    Step(0, 3, 1, 2, forward_ns=-5),
    Step(0, 3, 1, 2, samples=-1),
    Memory(0, 3, -5, 9, ByCategory(), ByCategory(), "ledger"),
    Memory(0, 3, 5, 1 << 60, ByCategory(), ByCategory(), "ledger"),
    Memory(0, 3, 5, 9, ByCategory(params=-1), ByCategory(), "ledger"),
    Collective(3, "all_reduce", "default", 0, 7, 1024, 1),
    Collective(3, "all_reduce", "default", 4, 7, 1 << 62, 1),
    Collective(3, "all_reduce", "default", 4, 7, 1024, 3, 2),
    Collective(3, "all_reduce", "default", 4, 7, 1024, 1 << 60),
    Collective(3, "all_reduce", "x" * (1 << 16), 4, 7, 1024, 1),
    Transfer(3, "reduce", -1, 0, 512, 99),
    Beat(3, "forward", gil_held=float("nan")),
    Beat(3, "forward", stack=["x"] * 1000),
    Gpu(0, util=float("inf")),
    Gpu(0, util=1.5),
    Gpu(0, temperature_c=-1e9),
    Gpu(0, power_w=float("nan")),
    Hello(0, 0, "ddp", "gloo", []),
    Hello(1, 0, "ddp", "gloo", [DeviceInfo("cpu", "cpu")] * 2000),
    Hello(1, 0, "ddp", "gloo", [], title="x" * 10_000),
    Bye("vanished"),
    Bye("failed", exit=1 << 40),
]


@pytest.mark.parametrize("record", OUT_OF_RANGE, ids=repr)
def test_a_value_out_of_range_refuses_its_record_and_no_other(record):
    assert refusals(Tick(), record, Bye("finished")) == [False, True, False]


def test_a_refusal_is_one_short_escaped_line():
    fields = msgspec.msgpack.decode(codec.encode(batch([Tick()])))
    fields[Batch.__struct_fields__.index("records")] = [["\x1b[2J\n" * 10_000], ["step", "x"]]
    refused = codec.decode(msgspec.msgpack.encode(fields)).records
    assert [type(each) for each in refused] == [Refused, Refused]
    assert all(each.why.isprintable() and 0 < len(each.why) <= 210 for each in refused)


def test_a_nan_or_infinite_loss_is_valid():
    assert refusals(Step(0, 3, 1, 2, loss=float("nan")), Step(0, 3, 1, 2, loss=float("inf"))) == [
        False,
        False,
    ]


def test_more_records_than_a_frame_may_hold_are_refused_whole():
    with pytest.raises(codec.WireError, match="malformed"):
        codec.decode(codec.encode(batch([Tick()] * (codec.MAX_RECORDS + 1))))


@pytest.mark.parametrize(
    "header", [{"rank": -2}, {"rank": 1 << 40}, {"pid": 0}, {"pid": 1 << 40}, {"seq": -2},
               {"dropped": -1}, {"mono_ns": -1}, {"mono_ns": 1 << 63}, {"host": "x" * 1000}]
)  # fmt: skip
def test_a_header_value_out_of_range_refuses_the_frame(header):
    with pytest.raises(codec.WireError, match="malformed"):
        codec.decode(codec.encode(msgspec.structs.replace(batch([Tick()]), **header)))
