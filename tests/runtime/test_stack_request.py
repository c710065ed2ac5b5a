"""Requests for stacks: from viewers, and in the file that ranks poll."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.runtime import stack_request
from dpwatch.runtime.stack_request import RequestFile, decode_request, encode_request, write_request
from dpwatch.wire.messages import Asked


def test_a_request_survives_the_wire():
    assert decode_request(encode_request([3, 1])).ranks == [3, 1]
    assert decode_request(encode_request([])).ranks == []
    assert decode_request(encode_request(list(range(stack_request.MOST_RANKS + 1)))).ranks == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"state",
        msgspec.msgpack.encode([[-1]]),
        msgspec.msgpack.encode([["0"]]),
        msgspec.msgpack.encode([list(range(stack_request.MOST_RANKS + 1))]),
        b"\x91" * 50_000,
        b"\x00" * (stack_request.MOST_BYTES + 1),
    ],
)
def test_an_invalid_request_is_none(payload):
    assert decode_request(payload) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_none(payload):
    decode_request(payload)


def test_a_rank_sees_each_new_request_once(tmp_path):
    file = tmp_path / "ask-stacks"
    looks = RequestFile(file)
    assert looks.changed() is None
    write_request(file, Asked(1, [0]))
    assert looks.changed() == Asked(1, [0])
    assert looks.changed() is None
    write_request(file, Asked(2))
    assert looks.changed() == Asked(2)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["ask-stacks"]


def test_requests_to_earlier_processes_are_ignored(tmp_path):
    file = tmp_path / "ask-stacks"
    write_request(file, Asked(1))
    assert RequestFile(file).changed() is None


@pytest.mark.parametrize("held", [b"", b"nonsense", b"[[[", b'["beat", 1, ""]', b"\xff" * 9])
def test_an_invalid_request_file_is_ignored(tmp_path, held):
    file = tmp_path / "ask-stacks"
    looks = RequestFile(file)
    file.write_bytes(held)
    assert looks.changed() is None
    write_request(file, Asked(1))
    assert looks.changed() == Asked(1)
