"""The probe's end of the wire: a PUSH socket to this host's hub, which it starts if need be."""

from __future__ import annotations

import contextlib
import os
import time

import zmq

from dpwatch.wire import paths, spawn, transport
from dpwatch.wire.asking import AskedFile
from dpwatch.wire.messages import Asked

HUB_PATIENCE_NS = 5_000_000_000
"""How long ranks other than the host's first wait for a hub before they start one themselves."""

CLOSE_LINGER_MS = 250
YOUNG_S = 5.0
YOUNG_LINGER_MS = 2000
"""A run that ends so soon may be over before its hub has come up, and waits for it so long."""

LAUNCHES = 3


class HubLink:
    """Connects to the run's hub. Made anywhere, used on the sender thread only."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._place: paths.RunDir | None = None
        self._asked: AskedFile | None = None
        self._pid = os.getpid()
        self._first = False
        self._next_look: int | None = None
        self._launches = 0
        self._opened_s = 0.0

    def open(self, run_id: str, local_rank: int) -> None:
        """Connects; the hub may come later.

        Raises:
            RuntimeDirError: There is no place for the run's sockets.
        """
        self._first = local_rank == 0
        self._opened_s = time.monotonic()
        self._place = paths.run_dir(run_id)
        self._asked = AskedFile(self._place.stacks_file)
        self._context = zmq.Context()
        self._socket = transport.push_socket(self._context, self._place.ingest)

    def send(self, frame: bytes) -> bool:
        """Hands a frame to ZeroMQ. Returns: False if its queue is full."""
        if self._socket is None:
            return False
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def asked(self) -> Asked | None:
        """Who is to tell their stacks, if somebody has asked since the last look."""
        return None if self._asked is None else self._asked.changed()

    def tend(self, now_ns: int) -> None:
        """Starts a hub where there is none: the host's first rank at once, others if it doesn't."""
        if self._next_look is None:
            self._next_look = now_ns if self._first else now_ns + HUB_PATIENCE_NS
        if self._place is None or now_ns < self._next_look:
            return
        self._next_look = now_ns + HUB_PATIENCE_NS
        if self._launches < LAUNCHES and not self._place.has_hub():
            self._launches += 1
            with contextlib.suppress(OSError):  # out of processes, say: try again later
                spawn.ensure_hub(self._place)

    def close(self) -> None:
        """Gives frames under way a quarter of a second, two to a hub that may still be starting."""
        if os.getpid() != self._pid:  # a forked child's copy isn't its to close
            return
        if self._place is not None and self._first and not self._launches:
            with contextlib.suppress(OSError):  # there is a hub in it, and so it isn't empty
                self._place.path.rmdir()
        socket, self._socket = self._socket, None
        if socket is not None:
            young = time.monotonic() - self._opened_s < YOUNG_S
            socket.close(linger=YOUNG_LINGER_MS if young else CLOSE_LINGER_MS)
        if self._context is not None:
            self._context.term()
            self._context = None
