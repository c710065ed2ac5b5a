"""Whether and how a hub joins those of the run's other hosts: as their head, as a node, or alone.

One of the three, chosen from the launcher's variables (`runtime.launcher_env`) and from whether
there are keys; a head that can't bind its port tries again, since another run's head may just be
ending there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import zmq

from dpwatch.hub.cluster.head import Head, Taker
from dpwatch.hub.cluster.node import Uplink
from dpwatch.runtime.curve_keys import Keys, KeysError, keys_path, load_keys
from dpwatch.runtime.launcher_env import HeadPlace, head_place, is_loopback, local_address
from dpwatch.wire.messages import AnyRecord, Asked, Batch, Host, Joined

NO_KEYS = "runs on other hosts are not joined: make keys with dpwatch keys"

_log = logging.getLogger("dpwatch.hub")


class Joining:
    """This hub's part in a run over several hosts; on one host it does nothing at all.

    Args:
        frames: The number of the hub's last frame.
        state: Its whole state, encoded.
        ask: Asks this host's ranks for their stacks, by a number at least.
        known: Hosts that a killed head had, and that its successor waits for.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        taker: Taker,
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
        self._taker = taker
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
            self._keys, self._trouble = None, f"runs on other hosts are not joined: {error}"
        if self._trouble:
            _log.warning("%s", self._trouble)

    @property
    def over_hosts(self) -> bool:
        """Whether the run has other hosts."""
        return self._place is not None or bool(self._trouble)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll; there may be more after a tick."""
        if self.head is not None:
            return self.head.sockets
        return (self.uplink.socket,) if self.uplink is not None else ()

    def take(self) -> None:
        """One of the sockets is ready."""
        if self.head is not None:
            self.head.take()
        elif self.uplink is not None:
            self.uplink.take()

    def tick(self) -> list[AnyRecord]:
        """Once a second. Returns: how this stands, for viewers; nothing on one host."""
        if not self.over_hosts:
            return []
        if self._place is None or self._keys is None:
            return [Joined("alone", note=self._trouble)]
        if self.uplink is not None:
            self.uplink.tick()
            return [self.uplink.told()]
        if self.head is None:
            self._bind(self._place, self._keys)
        if self.head is None:
            return [Joined("alone", self._place.address, note=self._trouble)]
        return [Joined("head", self._place.address, connected=True), *self.head.told()]

    def hear(self, batch: Batch) -> None:
        """A frame of this host's own ranks."""
        if self.head is not None:
            self.head.hear(batch)

    def forward(self, number: int, frame: bytes, *, of_rank: bool) -> None:
        """A frame that went into this hub's state."""
        if self.uplink is not None:
            self.uplink.forward(number, frame, of_rank=of_rank)

    def ask(self, asked: Asked) -> None:
        """Ranks of other hosts are to send their stacks too."""
        if self.head is not None:
            self.head.ask(asked)

    def forget_states(self) -> None:
        """The hub's state begins anew, and other hosts' parts of it are to come again."""
        if self.head is not None:
            self.head.forget_states()

    def is_silent(self, host: str, at_least_ns: int) -> bool:
        """Whether nothing has been heard of another host for so long."""
        return self.head is not None and self.head.silent(host, at_least_ns)

    @property
    def owes(self) -> bool:
        """Whether a head that was there has not got all that this hub knows."""
        return self.uplink is not None and self.uplink.owes

    def close(self) -> None:
        """Leaves."""
        if self.head is not None:
            self.head.close()
        if self.uplink is not None:
            self.uplink.close()

    def _bind(self, place: HeadPlace, keys: Keys) -> None:
        """At the address that others know, where it is one of this host's, else at all of them."""
        address = self._address = self._address or _own_address(place.host)
        name = f"[{address}]" if ":" in address else address
        try:
            self.head = Head(
                self._context,
                f"tcp://{name}:{place.port}",
                keys,
                self._taker,
                run_id=self._run_id,
                host=self._host,
                known=self._known,
            )
        except zmq.ZMQError as error:
            trouble = (
                f"no head at port {place.port} of {address}: {error.strerror or error}; "
                "runs on other hosts are not joined (DPWATCH_HEAD=host:port names another port)"
            )
            if trouble != self._trouble:
                _log.warning("%s", trouble)
            self._trouble = trouble
        else:
            self._trouble = ""


def _own_address(host: str) -> str:
    """An address of this host by which others reach it, `*` (all of them) if nothing tells."""
    address = local_address(host) or "*"
    # A name that only its own host takes for loopback is no place for others.
    return "*" if is_loopback(address) and not is_loopback(host) else address
