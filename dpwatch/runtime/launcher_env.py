"""Runs over several hosts: whether this is one, where its head hub is, and whether that is here.

All of it is read from what the launcher has told the ranks, so that every host comes to the same
answer without asking another: torchrun's rendezvous, a Slurm step, or `DPWATCH_HEAD=host[:port]`.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 20_000, 10_000
"""The head's port where none is named: below those that systems give to outgoing connections."""

HEAD = "DPWATCH_HEAD"
NODE_RANK, SPREAD = "DPWATCH_NODE_RANK", "DPWATCH_SPREAD"
"""Tell a hub which of the run's hosts this is, since a hub's environment has no rank."""


@dataclass(kw_only=True, slots=True, frozen=True)
class HeadPlace:
    """Where a run's head hub is.

    Attributes:
        host: Name or address.
        here: It is this host's hub.
    """

    host: str
    port: int
    here: bool

    @property
    def address(self) -> str:
        """As people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_multi_host(env: Mapping[str, str]) -> bool:
    """Whether the launcher has spread the run over several hosts."""
    if env.get(HEAD) or env.get(SPREAD):
        return True
    for name in ("GROUP_WORLD_SIZE", "SLURM_STEP_NUM_NODES"):
        if (count := _number(env.get(name))) is not None:
            return count > 1
    world, local = (_number(env.get(name)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world is not None and local is not None:
        return world > local
    # A rank a container, as Kubernetes' operators start them, with nothing but torch's own names.
    return (world or 1) > 1 and not is_loopback(env.get("MASTER_ADDR", ""))


def node_rank(env: Mapping[str, str]) -> int | None:
    """Which of the run's hosts this is; 0 has rank 0. None where nothing tells."""
    for name in (NODE_RANK, "GROUP_RANK", "SLURM_NODEID"):
        if (number := _number(env.get(name))) is not None:
            return number
    rank = _number(env.get("RANK"))
    if rank is None:
        return None
    return 0 if rank == (_number(env.get("LOCAL_RANK")) or 0) else 1


def head_place(env: Mapping[str, str], run_id: str) -> HeadPlace | None:
    """Where the head of this run is, None for a run on one host.

    It is the hub of the host that has rank 0, at `MASTER_ADDR`; or where `DPWATCH_HEAD` says. A
    port that nobody named follows from the run's id, so it is the same for all of its hubs.

    Raises:
        ValueError: `DPWATCH_HEAD` is not `host` or `host:port`, or the run is spread over hosts
            and nothing tells where rank 0 is.
    """
    port = FIRST_PORT + zlib.crc32(run_id.encode()) % PORTS
    if named := env.get(HEAD):
        host, port = _split(named, port)
        return HeadPlace(host=host, port=port, here=local_address(host) is not None)
    if not is_multi_host(env):
        return None
    host, node = (
        env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "")),
        node_rank(env),
    )
    if not host or node is None:
        raise ValueError(f"nothing tells where rank 0's host is: set {HEAD}=host:port on all hosts")
    return HeadPlace(host=host, port=port, here=node == 0)


def first_host(nodes: str) -> str:
    """The first host of a Slurm list such as `node[01-04,7],gpu2`, "" of an empty one."""
    found = re.match(r"([^\[,]*)(?:\[([^-,\]]+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def local_address(host: str) -> str | None:
    """An address by which `host` is this host, None if it is another (or not known at all)."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, kind, _, _, place in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind((place[0], 0))
            except OSError:
                continue
            return str(place[0])
    return None


def _split(named: str, port: int) -> tuple[str, int]:
    host, colon, number = named.rpartition(":")
    if not colon or named.endswith("]") or (":" in host.strip("[]") and not host.startswith("[")):
        host = named  # no port; an IPv6 address has colons of its own
    elif not host or not number.isascii() or not number.isdigit() or not 0 < int(number) < 65536:
        raise ValueError(f"{HEAD}={named} is not host:port")
    else:
        port = int(number)
    return host.strip("[]"), port


def variables_for_hub(env: Mapping[str, str]) -> dict[str, str]:
    """What a hub that this rank starts is to know of its place among the hosts."""
    if not is_multi_host(env):
        return {}
    node = node_rank(env)
    return {SPREAD: "1"} | ({} if node is None else {NODE_RANK: str(node)})


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean the host that says it."""
    return host in ("", "localhost", "::1", "0.0.0.0") or host.startswith("127.")


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
