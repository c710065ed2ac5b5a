"""Who may connect to a head: ZeroMQ asks (RFC 27, ZAP), and this answers in the hub's own loop.

Without somebody who answers, CURVE lets any client in that knows the server's public key.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import zmq
import zmq.utils.z85

ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_FIELDS = 7
_CURVE = b"CURVE"

_log = logging.getLogger("dpwatch.hub")


class Doorkeeper:
    """Admits clients whose public keys it knows, and nobody else.

    Bind it before the socket that it guards; then poll `socket`, and call `take` when it is ready.

    Args:
        context: That of the guarded socket.
        known: The public keys (Z85) that come in.
    """

    def __init__(self, context: zmq.Context[Any], known: Collection[str]) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)
        self.refused = 0
        self._known = frozenset(known)

    def take(self) -> None:
        """Answers all that ask."""
        while True:
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            known = self._is_known(request)
            number = request[1] if len(request) > 1 else b""
            code, text = (b"200", b"OK") if known else (b"400", b"unknown key")
            self.socket.send_multipart([_VERSION, number, code, text, b"", b""])
            if not known:
                self._tell(request)

    def _is_known(self, request: list[bytes]) -> bool:
        if len(request) != _FIELDS or request[0] != _VERSION or request[5] != _CURVE:
            return False
        key = request[6]
        return len(key) == 32 and zmq.utils.z85.encode(key).decode("ascii") in self._known

    def _tell(self, request: list[bytes]) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the 1st, 2nd, 4th, … so the log stays small
            address = request[3].decode("ascii", "replace") if len(request) > 3 else "?"
            _log.warning("refused %d connections, the last one from %s", self.refused, address)

    def close(self) -> None:
        """Nobody is admitted any more."""
        self.socket.close()
