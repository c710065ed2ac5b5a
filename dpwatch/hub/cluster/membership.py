"""Decides a hub's role among the run's hosts: head, node, or alone.

The role follows from the launcher's variables (`runtime.launcher_env`) and from whether there are
keys. A head that can't bind its port retries, since another run's head may just be ending there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import zmq

from dpwatch.hub.cluster.head import FrameSink, Head
from dpwatch.hub.cluster.node import Uplink
from dpwatch.runtime.curve_keys import Keys, KeysError, keys_path, load_keys
from dpwatch.runtime.launcher_env import HeadPlace, head_place, is_loopback, local_address
from dpwatch.wire.messages import AnyRecord, Asked, Batch, Host, Joined

NO_KEYS = "ranks on other hosts are not shown: create keys with dpwatch keys"

_log = logging.getLogger("dpwatch.hub")


class Membership:
    """A hub's membership in a run over several hosts; does nothing on one host.

    Args:
        context: ZeroMQ context.
        sink: Receives other hosts' frames and states.
        run_id: The run.
        host: This host's name.
        frames: Returns the number of the hub's last frame.
        state: Returns its encoded state.
        ask: Asks this host's ranks for their stacks, given a least number and the ranks.
        known: Hosts that a killed head had, for its successor.
        env: Environment variables.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        sink: FrameSink,
        *,
        run_id: str,
        host: str,
        frames: Callable[[], int],
        state: Callable[[], bytes],
        ask: Callable[[int, list[int]], None],
        known: Iterable[Host] = (),
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._context = context
        self._sink = sink
        self._run_id, self._host = run_id, host
        self._known = list(known)
        self._address = ""
        self.head: Head | None = None
        self.uplink: Uplink | None = None
        self._place: HeadPlace | None = None
        self._keys: Keys | None = None
        self._trouble = ""
        try:
            self._place = head_place(env, run_id)
            if self._place is not None:
                self._keys = load_keys(keys_path())
                self._trouble = "" if self._keys else NO_KEYS
            if self._place is not None and self._keys is not None and not self._place.here:
                self.uplink = Uplink(
                    context,
                    self._place,
                    self._keys,
                    run_id=run_id,
                    host=host,
                    pid=os.getpid(),
                    frames=frames,
                    state=state,
                    ask=ask,
                )
        except (ValueError, KeysError, zmq.ZMQError) as error:
            self._keys, self._trouble = None, f"ranks on other hosts are not shown: {error}"
        if self._trouble:
            _log.warning("%s", self._trouble)

    @property
    def is_multi_host(self) -> bool:
        """Whether the run has other hosts."""
        return self._place is not None or bool(self._trouble)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """Sockets to poll; a tick may add more."""
        if self.head is not None:
            return self.head.sockets
        return (self.uplink.socket,) if self.uplink is not None else ()

    def receive(self) -> None:
        """Handles messages once a socket is ready."""
        if self.head is not None:
            self.head.receive()
        elif self.uplink is not None:
            self.uplink.receive()

    def tick(self) -> list[AnyRecord]:
        """Call once a second. Returns records on the membership, for viewers; none on one host."""
        if not self.is_multi_host:
            return []
        if self._place is None or self._keys is None:
            return [Joined("alone", note=self._trouble)]
        if self.uplink is not None:
            self.uplink.tick()
            return [self.uplink.joined_record()]
        if self.head is None:
            self._bind(self._place, self._keys)
        if self.head is None:
            return [Joined("alone", self._place.address, note=self._trouble)]
        return [Joined("head", self._place.address, connected=True), *self.head.host_records()]

    def sync_clocks(self, batch: Batch) -> None:
        """Takes a frame of this host's ranks, to sync clocks."""
        if self.head is not None:
            self.head.sync_clocks(batch)

    def forward(self, number: int, frame: bytes, *, of_rank: bool) -> None:
        """Forwards a frame, applied to this hub's state, to the head."""
        if self.uplink is not None:
            self.uplink.forward(number, frame, of_rank=of_rank)

    def ask(self, asked: Asked) -> None:
        """Asks ranks of other hosts for their stacks."""
        if self.head is not None:
            self.head.ask(asked)

    def forget_states(self) -> None:
        """Requests other hosts' states again, since the hub's state was replaced."""
        if self.head is not None:
            self.head.forget_states()

    def is_silent(self, host: str, at_least_ns: int) -> bool:
        """Whether another host's hub has sent nothing for `at_least_ns`."""
        return self.head is not None and self.head.silent(host, at_least_ns)

    @property
    def has_unconfirmed(self) -> bool:
        """Whether a head that was connected lacks some of this hub's frames."""
        return self.uplink is not None and self.uplink.has_unconfirmed

    def close(self) -> None:
        """Closes all connections."""
        if self.head is not None:
            self.head.close()
        if self.uplink is not None:
            self.uplink.close()

    def _bind(self, place: HeadPlace, keys: Keys) -> None:
        """Binds to the address that others use if it is one of this host's, else to all."""
        address = self._address = self._address or _own_address(place.host)
        name = f"[{address}]" if ":" in address else address
        try:
            self.head = Head(
                self._context,
                f"tcp://{name}:{place.port}",
                keys,
                self._sink,
                run_id=self._run_id,
                host=self._host,
                known=self._known,
            )
        except zmq.ZMQError as error:
            trouble = (
                f"no head at port {place.port} of {address}: {error.strerror or error}; "
                "ranks on other hosts are not shown (DPWATCH_HEAD=host:port sets another port)"
            )
            if trouble != self._trouble:
                _log.warning("%s", trouble)
            self._trouble = trouble
        else:
            self._trouble = ""


def _own_address(host: str) -> str:
    """An address of this host at which others reach it, `*` (all addresses) if unknown."""
    address = local_address(host) or "*"
    # If only this host resolves the name to loopback, others can't use that address.
    return "*" if is_loopback(address) and not is_loopback(host) else address
