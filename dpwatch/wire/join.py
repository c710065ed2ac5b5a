"""What hubs of several hosts say to each other, over TCP and never without keys.

A node's hub connects to the head's and says once a second that it is here. The head answers with
the time, which the node sends back beside its own: so the head knows how their clocks differ. When
the head wants the node's state (at first, after a gap, after either's death) it says so with that
answer; the node sends it, and from then on each of its frames, numbered, until the head falls
silent or another one is in its place.

Each message is one header, an array with its kind first; `State` and `Frame` have parts after it.
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
"""Messages a node keeps for a head that takes them too slowly; then the state is sent instead."""

PART_BYTES = 1 << 19
MOST_PARTS = 512
"""A state travels in parts, so that no socket has to admit a large message from a stranger."""

_CURVE_BYTES = 64
_BEAT_MS, _SILENT_MS = 1_000, 4_000
_RETRY_MS, _RETRY_MOST_MS, _CONNECT_MS = 250, 4_000, 5_000


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base of all headers."""


class Here(Message, frozen=True, tag="here"):
    """Node: I am here.

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
        token: The head hub's own; another one means another hub.
        sent_ns: By the head's clock.
        want_state: Send your state, then your frames.
    """

    token: int
    sent_ns: int
    want_state: bool


class Back(Message, frozen=True, tag="back"):
    """Node: `Time` came, at this time of mine."""

    sent_ns: int
    here_ns: int


class State(Message, frozen=True, tag="state"):
    """Node: the parts after this are my whole state, up to this frame."""

    frames: int


class Frame(Message, frozen=True, tag="frame"):
    """Node: the part after this is a frame as a rank or this hub made it."""

    number: int


class Ask(Message, frozen=True, tag="ask"):
    """Head: ask your ranks for their stacks, by this number at least.

    Attributes:
        ranks: Whom; none: every rank.
    """

    number: int
    ranks: list[int] = []


class Refused(Message, frozen=True, tag="refused"):
    """Head: we can't have to do with each other, and why."""

    why: str


AnyMessage = Here | Time | Back | State | Frame | Ask | Refused

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """A header as bytes."""
    return _encoder.encode(message)


def decode(header: bytes) -> AnyMessage | None:
    """A header, None where it is none of this version."""
    try:
        message: AnyMessage = _decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return message


def in_parts(blob: bytes) -> list[bytes]:
    """A state cut for sending.

    Raises:
        ValueError: It is larger than a head takes.
    """
    parts = [blob[at : at + PART_BYTES] for at in range(0, len(blob), PART_BYTES)]
    if len(parts) > MOST_PARTS:
        raise ValueError(f"a state of {len(blob)} bytes is too large to send")
    return parts


def head_socket(context: zmq.Context[Any], endpoint: str, keys: Keys) -> zmq.Socket[bytes]:
    """The head's end: only who has the client's key comes in (see `hub.cluster.zap_handler`).

    Raises:
        zmq.ZMQError: Nothing can be bound there.
    """
    socket = _socket(context, zmq.ROUTER, endpoint)
    socket.curve_server = True
    socket.curve_publickey = keys.head.public.encode()
    socket.curve_secretkey = keys.head.secret.encode()
    socket.zap_domain = ZAP_DOMAIN
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a node that comes again is that node
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
    """A node's end: speaks to nobody but who has the head's key."""
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
