"""The probe's connection to this host's hub: a PUSH socket, and starting the hub if needed.

A script may notice that a process is started: its SIGCHLD handler runs, and `sys.executable` is not
always a Python interpreter. So a rank first asks others to start the hub (`runtime.hub_request`):
`dpwatch run`, which starts it at once, or, if the rank must start no process, any viewer.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

import zmq

from dpwatch.runtime import hub_request, paths, spawn
from dpwatch.runtime.stack_request import RequestFile
from dpwatch.wire import transport
from dpwatch.wire.messages import Asked

HUB_PATIENCE_NS = 5_000_000_000
"""How long ranks other than the host's first wait for a hub before they start one themselves."""

CLOSE_LINGER_S = 0.25
STARTUP_S = 5.0
STARTUP_LINGER_S = 2.0
"""A run that ends within `STARTUP_S` may be over before its hub is up, and waits this long for
it."""

LAUNCHES = 3


class HubLink:
    """Connects to the run's hub. Created anywhere, used on the sender thread only.

    Attributes:
        hub_seen: Whether a hub has been running.
    """

    def __init__(self) -> None:
        self.hub_seen = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._place: paths.RunDir | None = None
        self._request_file: RequestFile | None = None
        self._pid = os.getpid()
        self._first = False
        self._next_look: int | None = None
        self._launches = 0
        self._asked_for = False
        self._expects_hub = True
        self._opened_s = 0.0

    def open(self, run_id: str, local_rank: int) -> None:
        """Connects; the hub may start later.

        Raises:
            RuntimeDirError: There is no place for the run's sockets.
            OSError: This process has no file descriptors left.
        """
        self._first = local_rank == 0
        self._opened_s = time.monotonic()
        self._next_look, self._launches, self._asked_for = None, 0, False
        self.hub_seen = False
        self._place = paths.run_dir(run_id)
        self._request_file = RequestFile(self._place.stacks_file)
        if not transport.has_room():
            raise OSError("this process has no file descriptors left; raise `ulimit -n`")
        self._context = zmq.Context()
        self._socket = transport.push_socket(self._context, self._place.ingest)

    def send(self, frame: bytes) -> bool:
        """Passes a frame to ZeroMQ. Returns: False if its queue is full."""
        if self._socket is None:
            return False
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def send_after_close(self, frame: bytes) -> None:
        """Sends one more frame to the hub of a closed link, if that is still running."""
        if self._place is None or not self._place.has_hub():
            return
        with zmq.Context() as context:
            socket = transport.push_socket(context, self._place.ingest)
            with contextlib.suppress(zmq.Again):
                socket.send(frame, zmq.NOBLOCK)
            socket.close(linger=int(CLOSE_LINGER_S * 1e3))

    def stack_request(self) -> Asked | None:
        """The request for stacks, if there is a new one since the last call."""
        return None if self._request_file is None else self._request_file.changed()

    def ensure_hub(self, now_ns: int) -> None:
        """Starts a hub if there is none: the host's first rank at once, others later."""
        if self._next_look is None:
            self._next_look = now_ns if self._first else now_ns + HUB_PATIENCE_NS
        if self._place is None:
            return
        if not self.hub_seen:
            self.hub_seen = self._place.has_hub()
        if now_ns < self._next_look:
            return
        self._next_look = now_ns + HUB_PATIENCE_NS
        if self._launches < LAUNCHES and not self._place.has_hub():
            with contextlib.suppress(OSError):  # for instance out of processes: retry later
                self._start_hub(self._place)

    def _start_hub(self, place: paths.RunDir) -> None:
        if not self._asked_for and _session_is_alive(place):
            self._asked_for = True
            hub_request.request_hub(place)
            return
        if why := _why_not_start():
            if not self._asked_for:
                self._asked_for = True
                self._expects_hub = False
                _print_line(f"{why}; to watch this run, start `dpwatch` in another terminal")
            hub_request.request_hub(place)
            return
        self._launches += 1
        spawn.ensure_hub(place)

    @property
    def patience_s(self) -> float:
        """Two seconds for a hub that may still be starting, else a quarter of a second."""
        young = self._expects_hub and time.monotonic() - self._opened_s < STARTUP_S
        return STARTUP_LINGER_S if young else CLOSE_LINGER_S

    def close(self) -> None:
        """Lets queued frames go out for up to `patience_s`."""
        if os.getpid() != self._pid:  # a forked child must not close its parent's
            return
        if self._place is not None and self._first and not self._launches:
            self._remove_empty_dir(self._place)
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close(linger=int(self.patience_s * 1e3))
        if self._context is not None:
            self._context.term()
            self._context = None

    def _remove_empty_dir(self, place: paths.RunDir) -> None:
        """Removes the run's directory, unless a hub is in it or expected."""
        if self._asked_for and self._expects_hub and time.monotonic() - self._opened_s < STARTUP_S:
            return  # queued frames wait for it
        hub_request.withdraw(place)
        with contextlib.suppress(OSError):  # not empty: there is a hub in it
            place.path.rmdir()


def _session_is_alive(place: paths.RunDir) -> bool:
    """Whether a `dpwatch run` on this host watches the directory that this run is in."""
    number = os.environ.get(hub_request.SESSION)
    return bool(number) and hub_request.session_is_alive(place.path.parent, str(number))


def _why_not_start() -> str:
    """Why this process should start no other, "" if it may."""
    if spawn.handles_sigchld():
        return "this script handles SIGCHLD itself, so dpwatch starts no process in it"
    if spawn.python() is None:
        return f"{sys.executable or 'this process'} is not a Python interpreter"
    return ""


def _print_line(text: str) -> None:
    with contextlib.suppress(Exception):  # stderr may be closed; this is the sender thread
        print(f"dpwatch: {text}", file=sys.stderr)  # noqa: T201
