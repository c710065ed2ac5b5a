"""A node's connection to the head: announces the node, answers requests and forwards frames.

Nothing here blocks. A frame that can't be sent at once is dropped: the head notices the gap and
requests the whole state, which includes it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import zmq

from dpwatch.runtime.curve_keys import Keys
from dpwatch.runtime.launcher_env import HeadPlace
from dpwatch.wire import join
from dpwatch.wire.messages import PROTOCOL_VERSION, Joined

SILENT_S = 3.5
"""The head answers every second; after this long without an answer it is disconnected."""

_log = logging.getLogger("dpwatch.hub")


class Uplink:
    """A node's connection to its run's head.

    Poll `socket`, and call `receive` when it is ready.

    Args:
        context: ZeroMQ context.
        head: Where the head is.
        keys: CURVE keys.
        run_id: The run.
        host: This host's name.
        pid: This hub's process.
        frames: Returns the number of this hub's last frame.
        state: Returns its encoded state.
        ask: Asks ranks for their stacks, given a least number and the ranks.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        head: HeadPlace,
        keys: Keys,
        *,
        run_id: str,
        host: str,
        pid: int,
        frames: Callable[[], int],
        state: Callable[[], bytes],
        ask: Callable[[int, list[int]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A later hub on this host must be another peer to the head, even with the same pid.
        name = f"{host}:{pid}:{secrets.token_hex(4)}".encode()
        self.socket = join.node_socket(context, f"tcp://{head.address}", keys, name)
        self._head = head
        self._me = (run_id, host, pid)
        self._frames = frames
        self._state = state
        self._ask = ask
        self._clock = clock
        self._began = clock()
        self._heard: float | None = None
        self._token: int | None = None
        self._refusal = ""
        self.following = False
        self._latest = self._sent = self._asked = self._confirmed = 0

    @property
    def connected(self) -> bool:
        """Whether the head has answered recently."""
        return self._heard is not None and self._clock() - self._heard <= SILENT_S

    @property
    def has_unconfirmed(self) -> bool:
        """Whether a head that was connected lacks some of this hub's frames."""
        return self._heard is not None and self._confirmed < self._latest

    def tick(self) -> None:
        """Announces this host; call once a second."""
        if not self.connected:
            self.following = False
        run_id, host, pid = self._me
        self._asked = self._sent
        self._send(join.Here(PROTOCOL_VERSION, run_id, host, pid, self._frames()))

    def forward(self, number: int, frame: bytes, *, of_rank: bool) -> None:
        """Forwards a frame if the head has everything before it."""
        if of_rank:
            self._latest = number
        if self.following:
            self.following = self._send(join.Frame(number), frame)
            self._sent = number if self.following else self._sent

    def receive(self) -> None:
        """Handles messages of the head."""
        while True:
            try:
                header = self.socket.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return
            message = join.decode(header)
            match message:
                case join.Time():
                    self._answer(message)
                case join.Ask():
                    self._ask(message.number, message.ranks)
                case join.Refused(why=why):
                    if why != self._refusal:
                        _log.warning("the head at %s refused: %s", self._head.address, why)
                    self._refusal = why

    def _answer(self, message: join.Time) -> None:
        self._send(join.Back(message.sent_ns, time.monotonic_ns()))
        self._heard, self._refusal = self._clock(), ""
        self._confirmed = self._asked  # the head has all frames sent before its request
        if message.token != self._token:  # the head was restarted and has no state yet
            self._token, self.following = message.token, False
            self._sent = self._asked = self._confirmed = 0
        if message.want_state:
            self.following = self._send_state()

    def _send_state(self) -> bool:
        try:
            parts = join.in_parts(self._state())
        except ValueError as error:
            _log.warning("%s", error)
            return False
        number = self._frames()
        sent = self._send(join.State(number), *parts)
        self._sent = number if sent else self._sent
        return sent

    def _send(self, header: join.AnyMessage, *parts: bytes) -> bool:
        try:
            self.socket.send_multipart([join.encode(header), *parts], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def joined_record(self) -> Joined:
        """Record on the connection, for viewers."""
        address = self._head.address
        if self._refusal:
            note = f"not joined to the head at {address}: {self._refusal}"
        elif self.connected:
            note = f"this host's ranks only: the whole run is on the head's host, {address}"
        elif self._heard is not None:
            silent_s = self._clock() - self._heard
            note = f"the head at {address} is silent for {silent_s:.0f} s; this host's ranks only"
        elif self._clock() - self._began > SILENT_S:
            note = (
                f"no head at {address} yet (host down, port closed, other keys?); "
                "this host's ranks only"
            )
        else:
            note = ""
        return Joined("node", address, self.connected, note)

    def close(self) -> None:
        """Closes the socket after 200 ms at most, so that queued messages are still sent."""
        self.socket.close(linger=200)
