"""ZeroMQ sockets with the limits this protocol needs. A socket stays on the thread that created it.

With the default LINGER `ctx.term()` would hang; without MAXMSGSIZE a partial frame could claim all
memory, and without a high-water mark a stopped reader could.
"""

from __future__ import annotations

import contextlib
import os

import zmq

from dpwatch.wire.codec import MAX_FRAME_BYTES

PUSH_HWM = 16
"""Frames a rank queues for an absent hub; older records wait in its recorder, which drops the
oldest."""

HUB_HWM = 64
"""Frames a hub queues per rank, about 15 seconds' worth; they bound the memory a flood can claim.

With 4,096 ranks and a hub that cannot keep up that is about 250 MB.
"""

REQUEST_BYTES = 4096
"""Limit of viewers' requests, which are short."""

_IPC_FILTER_UID = 59
"""ZMQ_IPC_FILTER_UID, which pyzmq does not name: the user whose connections an ipc socket
accepts."""


def push_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A rank's socket: connects, sends with NOBLOCK, and listens on nothing."""
    socket = _socket(context, zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, PUSH_HWM)
    socket.connect(endpoint)
    return socket


def pull_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A hub's socket for incoming frames."""
    socket = _socket(context, zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, HUB_HWM)
    bind(socket, endpoint)
    return socket


def answer_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A hub's socket for viewers' requests."""
    socket = _socket(context, zmq.ROUTER, max_bytes=REQUEST_BYTES)
    socket.setsockopt(zmq.SNDHWM, 16)
    socket.setsockopt(zmq.RCVHWM, 16)
    bind(socket, endpoint)
    return socket


def ask_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A viewer's socket for requests; answers may be larger than a frame."""
    socket = _socket(context, zmq.DEALER, max_bytes=256 * MAX_FRAME_BYTES)
    socket.connect(endpoint)
    return socket


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Binds a socket; an ipc endpoint accepts only this user's processes.

    The directory's mode keeps others out. As a second barrier, the kernel reports who connects
    (SO_PEERCRED), and the socket file's mode restricts who may.
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
    """Whether this process can open that many more files; without them libzmq aborts."""
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
