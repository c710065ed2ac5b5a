"""Messages between the hubs of several hosts, over TCP with CURVE keys.

A node's hub connects to the head's and sends `Here` once a second. The head answers with its time,
which the node returns along with its own, so the head can estimate the offset of their clocks. When
the head needs the node's state (at first, after a gap, or when either has restarted) it says so in
that answer. The node then sends its state, followed by each of its frames, numbered, until the head
goes silent or is replaced.

Each message is one header, an array that starts with its kind; `State` and `Frame` are followed by
parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from dpwatch.wire.codec import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from dpwatch.runtime.curve_keys import Keys

ZAP_DOMAIN = b"dpwatch"
QUEUE = 4096
"""Messages a node queues for a head that reads too slowly; beyond that it sends its state again."""

PART_BYTES = 1 << 19
MOST_PARTS = 512
"""A state is sent in parts, so that no socket has to accept a large message from a stranger."""

_CURVE_BYTES = 64
_BEAT_MS, _SILENT_MS = 1_000, 4_000
_RETRY_MS, _RETRY_MOST_MS, _CONNECT_MS = 250, 4_000, 5_000


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base class of all headers."""


class Here(Message, frozen=True, tag="here"):
    """Node: I am alive.

    Attributes:
        frames: Number of its last frame.
    """

    version: int
    run_id: str
    host: str
    pid: int
    frames: int


class Time(Message, frozen=True, tag="time"):
    """Head: the answer to `Here`.

    Attributes:
        token: Identifies this head process; another token means another process.
        sent_ns: The head's clock.
        want_state: Whether the node should send its state, then its frames.
    """

    token: int
    sent_ns: int
    want_state: bool


class Back(Message, frozen=True, tag="back"):
    """Node: returns `Time`, with the node's clock when it arrived."""

    sent_ns: int
    here_ns: int


class State(Message, frozen=True, tag="state"):
    """Node: the following parts are my whole state, up to this frame."""

    frames: int


class Frame(Message, frozen=True, tag="frame"):
    """Node: the following part is a frame from one of its ranks or from this hub."""

    number: int


class Ask(Message, frozen=True, tag="ask"):
    """Head: request your ranks' stacks under this number or a higher one.

    Attributes:
        ranks: The ranks asked; empty means every rank.
    """

    number: int
    ranks: list[int] = []


class Refused(Message, frozen=True, tag="refused"):
    """Head: I cannot accept you, and why."""

    why: str


AnyMessage = Here | Time | Back | State | Frame | Ask | Refused

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """Encodes a header."""
    return _encoder.encode(message)


def decode(header: bytes) -> AnyMessage | None:
    """Decodes a header, None if it is not a valid one of this version."""
    try:
        message: AnyMessage = _decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return message


def in_parts(blob: bytes) -> list[bytes]:
    """Splits a state for sending.

    Raises:
        ValueError: It is larger than a head accepts.
    """
    parts = [blob[at : at + PART_BYTES] for at in range(0, len(blob), PART_BYTES)]
    if len(parts) > MOST_PARTS:
        raise ValueError(f"a state of {len(blob)} bytes is too large to send")
    return parts


def head_socket(context: zmq.Context[Any], endpoint: str, keys: Keys) -> zmq.Socket[bytes]:
    """The head's socket; admits only the client key (see `hub.cluster.zap_handler`).

    Raises:
        zmq.ZMQError: The endpoint cannot be bound.
    """
    socket = _socket(context, zmq.ROUTER, endpoint)
    socket.curve_server = True
    socket.curve_publickey = keys.head.public.encode()
    socket.curve_secretkey = keys.head.secret.encode()
    socket.zap_domain = ZAP_DOMAIN
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a node that reconnects replaces its old connection
    socket.setsockopt(zmq.SNDHWM, 16)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError:
        socket.close()
        raise
    return socket


def node_socket(
    context: zmq.Context[Any], endpoint: str, keys: Keys, name: bytes
) -> zmq.Socket[bytes]:
    """A node's socket; talks only to a peer that has the head's key."""
    socket = _socket(context, zmq.DEALER, endpoint)
    socket.curve_serverkey = keys.head.public.encode()
    socket.curve_publickey = keys.client.public.encode()
    socket.curve_secretkey = keys.client.secret.encode()
    socket.setsockopt(zmq.ROUTING_ID, name[:255])
    socket.setsockopt(zmq.SNDHWM, QUEUE)
    socket.setsockopt(zmq.RECONNECT_IVL, _RETRY_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RETRY_MOST_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
    socket.connect(endpoint)
    return socket


def _socket(context: zmq.Context[Any], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES + _CURVE_BYTES)
    socket.setsockopt(zmq.RCVHWM, QUEUE)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _BEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, _SILENT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _CONNECT_MS)
    if "[" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)
    return socket
