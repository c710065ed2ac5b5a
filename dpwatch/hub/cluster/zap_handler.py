"""Authenticates connections to a head: answers ZeroMQ's ZAP requests (RFC 27) in the hub's loop.

Without a ZAP handler, CURVE admits any client that knows the server's public key.
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


class CurveAuthenticator:
    """Admits only clients with known public keys.

    Create it before binding the guarded socket, poll `socket`, and call `receive` when it is ready.

    Args:
        context: Context of the guarded socket.
        known: Public keys (Z85) to admit.
    """

    def __init__(self, context: zmq.Context[Any], known: Collection[str]) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)
        self.refused = 0
        self._known = frozenset(known)

    def receive(self) -> None:
        """Answers pending requests."""
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
                self._log_refusal(request)

    def _is_known(self, request: list[bytes]) -> bool:
        if len(request) != _FIELDS or request[0] != _VERSION or request[5] != _CURVE:
            return False
        key = request[6]
        return len(key) == 32 and zmq.utils.z85.encode(key).decode("ascii") in self._known

    def _log_refusal(self, request: list[bytes]) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the 1st, 2nd, 4th, … so the log stays small
            address = request[3].decode("ascii", "replace") if len(request) > 3 else "?"
            _log.warning("refused connections: %d so far; last: from %s", self.refused, address)

    def close(self) -> None:
        """Closes the socket, so that no client is admitted."""
        self.socket.close()
