"""The head's side of a run over several hosts: receives the state and the frames of node hubs.

A node sends its whole state, then numbered frames. After a gap, a restart of the node's hub or of
the head, the head requests the state again. Times are converted to this host's clock on arrival, so
everything after that sees one run on one clock.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec
import zmq

from dpwatch.hub.cluster.clock_rebase import shift_state, shifted_batch
from dpwatch.hub.cluster.clock_sync import Clocks, Estimate
from dpwatch.hub.cluster.zap_handler import CurveAuthenticator
from dpwatch.run.state.encoding import decode as decode_state
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime.curve_keys import Keys
from dpwatch.wire import codec, join
from dpwatch.wire.messages import HUB_RANK, PROTOCOL_VERSION, Asked, Batch, Host, Unanswered

SILENT_NS = 3_500_000_000
"""A node's hub sends a message every second; after this long without one it is silent."""

ASK_NS = 2_000_000_000
"""Least time between two requests for a node's state."""

MOST_NODES = 4096
TURN = 2048
"""Messages read per turn of the hub's loop."""

_log = logging.getLogger("dpwatch.hub")


class FrameSink(Protocol):
    """Receives other hosts' frames and states: the hub."""

    def take_frame(self, batch: Batch) -> None:
        """Takes a frame of another host's rank, converted to this host's clock."""

    def take_state(self, host: str, part: RunState) -> None:
        """Takes another host's state, converted to this host's clock."""


class Node:
    """One other host's hub.

    Attributes:
        number: Number of its last frame included in the state here, None before its state is.
    """

    def __init__(self, host: str, identity: bytes, pid: int) -> None:
        self.host, self.identity, self.pid = host, identity, pid
        self.number: int | None = None
        self.heard_ns = 0
        self.asked_ns: int | None = None
        self.states = 0
        self.estimate: Estimate | None = None


class Head:
    """Accepts other hosts' hubs. Poll `sockets`, and call `receive` when one of them is ready.

    Raises:
        zmq.ZMQError: `endpoint` can't be bound.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        keys: Keys,
        sink: FrameSink,
        *,
        run_id: str,
        host: str,
        known: Iterable[Host] = (),
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._authenticator = CurveAuthenticator(context, [keys.client.public])
        try:
            self._socket = join.head_socket(context, endpoint, keys)
        except zmq.ZMQError:
            self._authenticator.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._sink = sink
        self._run_id, self._host = run_id, host
        self._clock = clock
        self._clocks = Clocks(host)
        self._token = secrets.randbits(62)
        self._nodes: dict[str, Node] = {}
        self._by_identity: dict[bytes, Node] = {}
        for each in known:
            self._nodes[each.host] = _expected(each)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """Sockets to poll."""
        return self._authenticator.socket, self._socket

    def receive(self) -> None:
        """Authenticates connections and handles messages."""
        self._authenticator.receive()
        for _ in range(TURN):
            try:
                identity, header, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                continue
            self._read(identity, join.decode(header), parts)

    def ask(self, asked: Asked) -> None:
        """Asks the ranks of all hosts for their stacks."""
        for node in self._by_identity.values():
            self._send(node.identity, join.Ask(asked.number, asked.ranks))

    def sync_clocks(self, batch: Batch) -> None:
        """Uses the collectives in a frame of this host's ranks to sync clocks."""
        if self._nodes:
            self._clocks.observe(self._host, batch.rank, batch.records)

    def forget_states(self) -> None:
        """Requests every node's state again, since the state here was replaced."""
        for node in self._nodes.values():
            node.number = node.asked_ns = None

    def silent(self, host: str, at_least_ns: int = SILENT_NS) -> bool:
        """Whether a host's hub has sent nothing for `at_least_ns`."""
        node = self._nodes.get(host)
        return node is None or self._clock() - node.heard_ns >= at_least_ns

    def host_records(self) -> list[Host]:
        """Records about the other hosts, for viewers."""
        return [
            Host(
                host=node.host,
                heard_ns=node.heard_ns,
                silent=self.silent(node.host),
                offset_ns=node.estimate.offset_ns if node.estimate else None,
                error_ns=node.estimate.error_ns if node.estimate else None,
                source=node.estimate.source if node.estimate else "",
                resent=max(0, node.states - 1),
            )
            for node in self._nodes.values()
        ]

    def close(self) -> None:
        """Closes the sockets."""
        self._socket.close()
        self._authenticator.close()

    def _read(self, identity: bytes, message: join.AnyMessage | None, parts: list[bytes]) -> None:
        if isinstance(message, join.Here):
            self._here(identity, message)
            return
        node = self._by_identity.get(identity)
        if node is None:
            return  # it identifies itself within a second
        node.heard_ns = self._clock()
        match message:
            case join.Back():
                self._clocks.exchange(node.host, message.sent_ns, message.here_ns, node.heard_ns)
                node.estimate = self._clocks.estimate(node.host, node.heard_ns)
                if node.number is None and node.asked_ns is None:
                    self._request_state(node)
            case join.Frame() if len(parts) == 1:
                self._frame(node, message.number, parts[0])
            case join.State():
                self._state(node, message.frames, parts)

    def _here(self, identity: bytes, message: join.Here) -> None:
        if why := self._refusal_reason(message):
            self._send(identity, join.Refused(why))
            return
        node = self._nodes.get(message.host)
        if node is None or node.identity != identity:
            if node is not None:
                self._by_identity.pop(node.identity, None)
            fresh = Node(message.host, identity, message.pid)
            if node is not None:
                # Another hub on that host has the same clock but other frame numbers.
                fresh.estimate, fresh.states = node.estimate, node.states
            node = self._nodes[message.host] = self._by_identity[identity] = fresh
        node.heard_ns = self._clock()
        if node.estimate is not None and node.number != message.frames:
            self._request_state(node)
        else:
            self._send(identity, join.Time(self._token, self._clock(), want_state=False))

    def _refusal_reason(self, message: join.Here) -> str:
        if message.version != PROTOCOL_VERSION:
            return (
                f"it speaks protocol {PROTOCOL_VERSION}, this host's dpwatch {message.version}: "
                "use the same version"
            )
        if message.run_id != self._run_id:
            return f"it is the head of another run, {self._run_id}"
        if message.host == self._host:
            return f"its own host is called {message.host} too: give hosts different names"
        if message.host not in self._nodes and len(self._nodes) >= MOST_NODES:
            return f"it has {MOST_NODES} hosts already"
        return ""

    def _request_state(self, node: Node) -> None:
        """Requests the time, and also the state unless that was requested recently."""
        now_ns = self._clock()
        want = node.asked_ns is None or now_ns - node.asked_ns >= ASK_NS
        if want:
            node.asked_ns = now_ns
        self._send(node.identity, join.Time(self._token, now_ns, want_state=want))

    def _frame(self, node: Node, number: int, frame: bytes) -> None:
        if node.number is None or node.estimate is None or number <= node.number:
            return
        if number > node.number + 1:
            node.number = None  # its state includes what is missing
            self._request_state(node)
            return
        node.number = number
        try:
            batch = codec.decode(frame)
        except codec.WireError as error:
            _log.warning("a frame from %s: %s", node.host, error)
            return
        if batch.host != node.host:
            return
        if batch.rank == HUB_RANK:
            self._hub_frame(node.estimate, batch)
            return
        self._clocks.observe(node.host, batch.rank, batch.records)
        self._sink.take_frame(shifted_batch(batch, node.estimate.offset_ns, time.time_ns()))

    def _hub_frame(self, estimate: Estimate, batch: Batch) -> None:
        """Takes only `Unanswered` records from a node's hub; others are for its own viewers."""
        found = [record for record in batch.records if isinstance(record, Unanswered)]
        if found:
            batch = msgspec.structs.replace(batch, records=found)
            self._sink.take_frame(shifted_batch(batch, estimate.offset_ns, time.time_ns()))

    def _state(self, node: Node, frames: int, parts: list[bytes]) -> None:
        if node.estimate is None or len(parts) > join.MOST_PARTS:
            return
        try:
            part = decode_state(b"".join(parts))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            _log.warning("a state from %s: %s", node.host, error)
            return
        node.number, node.asked_ns = frames, None
        node.states += 1
        shift_state(part, node.estimate.offset_ns)
        self._sink.take_state(node.host, part)

    def _send(self, identity: bytes, message: join.AnyMessage) -> None:
        try:
            self._socket.send_multipart([identity, join.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise


def _expected(host: Host) -> Node:
    """A node that this head's predecessor had and that has not reconnected yet."""
    node = Node(host.host, b"", 0)
    node.heard_ns, node.states = host.heard_ns, host.resent + 1
    if host.offset_ns is not None and host.error_ns is not None:
        node.estimate = Estimate(host.offset_ns, host.error_ns, host.source)
    return node
