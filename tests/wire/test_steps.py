"""Many steps in one record: packing and unpacking is lossless."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.wire import codec
from dpwatch.wire.batching import count_records, pack, unpack
from dpwatch.wire.calls import UNKNOWN
from dpwatch.wire.messages import Refused, Step, Steps, Tick
from tests.frames import MS, START_NS, batch, step


def times(most):
    return st.one_of(st.none(), st.integers(0, 9), st.integers(0, most))


@st.composite
def some_steps(draw):
    end_ns = START_NS - draw(st.integers(0, 9_000 * MS))
    return Step(
        draw(st.integers(0, 2)),
        draw(st.integers(0, 9) | st.integers(0, 1 << 40)),
        end_ns - draw(st.integers(0, 9) | st.integers(0, 9_000 * MS)),
        end_ns,
        *[draw(times(UNKNOWN + 1)) for _ in range(10)],
        draw(st.none() | st.floats(allow_nan=False)),
        draw(times(1 << 53)),
    )


@given(some=st.lists(some_steps(), max_size=9))
def test_packed_steps_unpack_unchanged(some):
    records = pack(some)
    assert Counter(unpack(records)) == Counter(some)
    assert count_records(records) == len(some)
    frame = batch(*records, now_ns=START_NS)
    assert codec.decode(codec.encode(frame)) == frame  # nothing of it is refused


def test_steps_of_a_device_keep_their_order_and_go_as_one_record():
    some = [step(n, device=d, loss=1.5, took_ms=3) for n in range(60) for d in (0, 1)]
    records = pack([*some, Tick()])
    assert [type(each) for each in records] == [Steps, Steps, Tick]
    assert list(unpack(records[:1])) == some[::2]
    assert len(msgspec.msgpack.encode(records[0])) < 70 * 60


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"rows": b"\0" * 61}, "have not a row each"),
        ({"losses": [1.0]}, "have not a row each"),
        ({"latest_ns": START_NS + 2000 * MS}, "in the future"),
        ({"latest_ns": 1 << 32}, "too far back"),
        ({"step": -1}, ""),
        ({"rows": b""}, ""),
    ],
)
def test_an_invalid_record_is_refused_alone(wrong, why):
    (record,) = pack([step(0), step(1)])
    record = msgspec.structs.replace(record, **wrong)
    told = codec.decode(codec.encode(batch(record, Tick(), now_ns=START_NS + 200 * MS)))
    assert isinstance(told.records[0], Refused)
    assert why in told.records[0].why
    assert told.records[1] == Tick()
