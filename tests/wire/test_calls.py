"""Many collectives in one record: packing and unpacking is lossless."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.wire import codec
from dpwatch.wire.batching import count_records
from dpwatch.wire.calls import MOST_CALLS, MOST_KINDS, UNKNOWN, Calls, pack, unpack
from dpwatch.wire.messages import Collective, Refused, Tick
from tests.frames import MS, START_NS, batch

CALL = Collective(
    3, "all_reduce", "default", 4, 7, 1024, START_NS, START_NS + 9, 3, "float32", 0, "backward",
    5, "train.py:9", True, 1024,
)  # fmt: skip


def calls(*some):
    """The record of these calls."""
    (record,) = pack(some)
    assert isinstance(record, Calls)
    return record


def ns(most):
    return st.one_of(st.none(), st.integers(0, 9), st.integers(0, most))


@st.composite
def collectives(draw):
    issued = START_NS - draw(st.integers(0, 9_000 * MS))
    took = draw(ns(1 << 33))
    return Collective(
        draw(st.integers(0, 9) | st.integers(0, 1 << 40)),
        draw(st.sampled_from(["all_reduce", "broadcast"])),
        draw(st.sampled_from(["default", "x" * 256])),
        draw(st.integers(1, 9)),
        draw(st.integers(0, 9) | st.integers(0, 1 << 53)),
        draw(st.integers(0, 3) | st.integers(0, 1 << 43)),
        issued,
        None if took is None else issued + took,
        draw(ns(1 << 55)),
        device=draw(st.integers(0, 2)),
        phase=draw(st.sampled_from(["", "backward"])),
        into_ns=draw(ns(UNKNOWN + 1)),
        where=draw(st.sampled_from(["", "a.py:1", "€" * 2048])),
        is_async=draw(st.sampled_from([None, False, True])),
        nbytes_out=draw(st.sampled_from([None, 7])),
    )


@given(some=st.lists(collectives(), max_size=12))
def test_packed_calls_unpack_unchanged(some):
    records = pack(some)
    told = [c for r in records for c in ([r] if isinstance(r, Collective) else unpack(r))]
    assert Counter(told) == Counter(some)
    assert count_records(records) == len(some)
    frame = batch(*records, now_ns=START_NS + 20_000 * MS)
    assert codec.decode(codec.encode(frame)) == frame  # nothing of it is refused


def test_calls_of_a_kind_keep_their_order_and_go_as_one_record():
    some = [msgspec.structs.replace(CALL, seq=i, issued_ns=START_NS - i) for i in range(99)]
    assert list(unpack(calls(*some))) == some
    assert len(msgspec.msgpack.encode(calls(*some))) < 30 * len(some)


def test_a_record_holds_a_limited_number_of_calls_and_kinds():
    some = [msgspec.structs.replace(CALL, seq=i) for i in range(2 * MOST_CALLS + 1)]
    assert [count_records([r]) for r in pack(some)] == [MOST_CALLS, MOST_CALLS, 1]
    some = [msgspec.structs.replace(CALL, nbytes=i, where="") for i in range(MOST_KINDS + 1)]
    records = pack(some)
    assert [c for r in records for c in unpack(r)] == some
    assert len(records) == 2 or all(len(r.kinds) > 1900 for r in records[:-1])


def test_a_single_call_is_not_packed():
    assert pack([CALL]) == [CALL]
    assert pack([]) == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"rows": b""}, "have not a row each"),
        ({"kinds": b"\xc1"}, "do not decode"),
        ({"kinds": b"\x90"}, "do not decode"),
        ({"kinds": b"\x91" * 2000}, "do not decode"),
        ({"kinds": msgspec.msgpack.encode([CALL] * 2)}, "do not decode"),
        ({"which": b"\0\1"}, "of a kind that is not told"),
        ({"latest_ns": START_NS + 2000 * MS}, "in the future"),
        ({"latest_ns": 1 << 32}, "too far back"),
        ({"step": -1}, ""),
        ({"which": b""}, ""),
    ],
)
def test_an_invalid_record_is_refused_alone(wrong, why):
    record = msgspec.structs.replace(calls(CALL, CALL), **wrong)
    told = codec.decode(codec.encode(batch(record, Tick())))
    assert isinstance(told.records[0], Refused)
    assert why in told.records[0].why
    assert told.records[1] == Tick()
