"""ZeroMQ sockets with the limits this protocol needs. A socket stays on the thread that made it.

Default LINGER would hang `ctx.term()`, no MAXMSGSIZE would let half a frame claim the host's
memory, and no high-water mark would let a stopped reader do the same.
"""

from __future__ import annotations

import contextlib
import os

import zmq

from dpwatch.wire.codec import MAX_FRAME_BYTES

PUSH_HWM = 16
"""Frames a rank keeps for an absent hub; older ones wait in its recorder, which drops oldest."""

HUB_HWM = 64
"""Frames a hub keeps of each rank, a quarter of a minute's; they bound what a flood can claim.

With four thousand ranks and a hub that can't keep up that is a quarter of a gigabyte.
"""

VIEWER_HWM = 1024

REQUEST_BYTES = 4096
"""A viewer's requests and subscriptions are short."""

_IPC_FILTER_UID = 59
"""ZMQ_IPC_FILTER_UID, which pyzmq has no name for: whose connections an ipc socket takes."""


def push_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A rank's end: connects out, sends with NOBLOCK, listens on nothing."""
    socket = _socket(context, zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, PUSH_HWM)
    socket.connect(endpoint)
    return socket


def pull_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A hub's intake."""
    socket = _socket(context, zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, HUB_HWM)
    bind(socket, endpoint)
    return socket


def publish_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """Where a hub learns whether viewers are there, which subscribe to it; it publishes nothing."""
    socket = _socket(context, zmq.XPUB, max_bytes=REQUEST_BYTES)
    socket.setsockopt(zmq.SNDHWM, VIEWER_HWM)
    bind(socket, endpoint)
    return socket


def answer_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """Where a hub answers viewers."""
    socket = _socket(context, zmq.ROUTER, max_bytes=REQUEST_BYTES)
    socket.setsockopt(zmq.SNDHWM, 16)
    socket.setsockopt(zmq.RCVHWM, 16)
    bind(socket, endpoint)
    return socket


def subscribe_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A viewer's end of that: it is there as long as this is open."""
    socket = _socket(context, zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, VIEWER_HWM)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint)
    return socket


def ask_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A viewer's end for asking a hub for views and states (which may be larger than a frame)."""
    socket = _socket(context, zmq.DEALER, max_bytes=256 * MAX_FRAME_BYTES)
    socket.connect(endpoint)
    return socket


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Binds; to an ipc endpoint for this user's processes only.

    The folder's mode keeps others out. Should that fail, the kernel says whose process connects
    (SO_PEERCRED), and the socket's own mode who may.
    """
    path = endpoint.removeprefix("ipc://")
    if path == endpoint:
        socket.bind(endpoint)
        return
    uid = os.geteuid()
    with contextlib.suppress(zmq.ZMQError):  # a libzmq without it, or another system
        socket.setsockopt(_IPC_FILTER_UID, uid - (1 << 32) if uid >> 31 else uid)
    socket.bind(endpoint)
    os.chmod(path, 0o600)


def has_room(files: int = 32) -> bool:
    """Whether this process may open so many files more; libzmq ends a process that may not."""
    try:
        with contextlib.ExitStack() as held:
            for _ in range(files):
                held.enter_context(open(os.devnull, "rb"))
    except OSError:
        return False
    return True


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, max_bytes: int = MAX_FRAME_BYTES
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    return socket
