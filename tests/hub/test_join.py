"""Authentication between hosts over real CURVE sockets, and messages between hubs."""

import time

import pytest
import zmq

from dpwatch.hub.cluster.zap_handler import CurveAuthenticator
from dpwatch.runtime.curve_keys import Keys, Pair, make_keys
from dpwatch.wire import join
from dpwatch.wire.join import Here

HELLO = Here(2, "run", "node1", 1, 0)


@pytest.fixture
def keys(tmp_path):
    return make_keys(tmp_path / "keys")


@pytest.fixture
def door(keys):
    """A head's socket and its authenticator, on a free loopback port."""
    context = zmq.Context()
    authenticator = CurveAuthenticator(context, [keys.client.public])
    socket = join.head_socket(context, "tcp://127.0.0.1:*", keys)
    try:
        yield authenticator, socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)
    finally:
        socket.close()
        authenticator.close()
        context.term()


def comes_in(door, connect, deadline_s):
    """Whether a client's message arrives within that time."""
    authenticator, head, endpoint = door
    context = zmq.Context()
    client = connect(context, endpoint)
    try:
        client.send(join.encode(HELLO), zmq.NOBLOCK)
        poller = zmq.Poller()
        poller.register(head, zmq.POLLIN)
        poller.register(authenticator.socket, zmq.POLLIN)
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            ready = dict(poller.poll(50))
            if authenticator.socket in ready:
                authenticator.receive()
            if head in ready:
                return join.decode(head.recv_multipart()[-1]) == HELLO
        return False
    finally:
        client.close()
        context.term()


def new_pair():
    public, secret = zmq.curve_keypair()
    return Pair(public.decode(), secret.decode())


def test_a_client_with_the_keys_is_admitted(door, keys):
    assert comes_in(
        door, lambda context, endpoint: join.node_socket(context, endpoint, keys, b"node1"), 30
    )
    assert door[0].refused == 0


def plain(context, endpoint, keys):
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket


def unknown_key(context, endpoint, keys):
    return join.node_socket(context, endpoint, Keys(keys.head, new_pair()), b"node1")


def wrong_server_key(context, endpoint, keys):
    return join.node_socket(context, endpoint, Keys(new_pair(), keys.client), b"node1")


@pytest.mark.parametrize("connect", [plain, unknown_key, wrong_server_key])
def test_a_client_without_the_keys_is_refused(door, keys, connect):
    assert not comes_in(door, lambda context, endpoint: connect(context, endpoint, keys), 1.5)
    assert door[0].refused > 0 or connect is not unknown_key


def test_invalid_headers_are_ignored():
    assert join.decode(b"") is None
    assert join.decode(b"\xc1" * 9) is None
    assert join.decode(b"\x91" * 100_000) is None
    assert join.decode(join.encode(HELLO)) == HELLO


def test_a_state_is_sent_in_parts():
    blob = bytes(range(256)) * 5000
    parts = join.in_parts(blob)
    assert b"".join(parts) == blob
    assert max(map(len, parts)) <= join.PART_BYTES
    with pytest.raises(ValueError, match="too large"):
        join.in_parts(b"x" * (join.PART_BYTES * join.MOST_PARTS + 1))
