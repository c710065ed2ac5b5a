"""Runs over several hosts: whether this is one, where its head hub is, and whether that is here.

Everything is read from the launcher's environment variables, so that every host reaches the same
answer without asking another: torchrun's rendezvous, a Slurm step, or `DPWATCH_HEAD=host[:port]`.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 20_000, 10_000
"""Range of the head's port if none is given: below the usual range of ephemeral ports."""

HEAD = "DPWATCH_HEAD"
NODE_RANK, SPREAD = "DPWATCH_NODE_RANK", "DPWATCH_SPREAD"
"""Tell a hub which of the run's hosts it is on, since a hub's environment has no rank."""


@dataclass(kw_only=True, slots=True, frozen=True)
class HeadPlace:
    """Location of a run's head hub.

    Attributes:
        host: Host name or address.
        here: Whether it is this host's hub.
    """

    host: str
    port: int
    here: bool

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_multi_host(env: Mapping[str, str]) -> bool:
    """Whether the launcher has distributed the run over several hosts."""
    if env.get(HEAD) or env.get(SPREAD):
        return True
    for name in ("GROUP_WORLD_SIZE", "SLURM_STEP_NUM_NODES"):
        if (count := _number(env.get(name))) is not None:
            return count > 1
    world, local = (_number(env.get(name)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world is not None and local is not None:
        return world > local
    # One rank per container, as Kubernetes operators start them, with only torch's own variables.
    return (world or 1) > 1 and not is_loopback(env.get("MASTER_ADDR", ""))


def node_rank(env: Mapping[str, str]) -> int | None:
    """Index of this host among the run's hosts; host 0 has rank 0. None if unknown."""
    for name in (NODE_RANK, "GROUP_RANK", "SLURM_NODEID"):
        if (number := _number(env.get(name))) is not None:
            return number
    rank = _number(env.get("RANK"))
    if rank is None:
        return None
    return 0 if rank == (_number(env.get("LOCAL_RANK")) or 0) else 1


def head_place(env: Mapping[str, str], run_id: str) -> HeadPlace | None:
    """Location of this run's head hub, None for a run on one host.

    It is the hub on the host of rank 0, at `MASTER_ADDR`, or as `DPWATCH_HEAD` says. Without a
    given port, the port is derived from the run id, so that all hubs of the run use the same.

    Raises:
        ValueError: `DPWATCH_HEAD` is not `host` or `host:port`, or the run spans several hosts and
            the host of rank 0 is unknown.
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
        raise ValueError(f"cannot tell which host has rank 0: set {HEAD}=host:port on all hosts")
    return HeadPlace(host=host, port=port, here=node == 0)


def first_host(nodes: str) -> str:
    """First host of a Slurm list such as `node[01-04,7],gpu2`, "" of an empty one."""
    found = re.match(r"([^\[,]*)(?:\[([^-,\]]+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def local_address(host: str) -> str | None:
    """An address by which `host` is this host, None if it is another host or unknown."""
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
    """Environment variables that tell a hub started by this rank about the run's hosts."""
    if not is_multi_host(env):
        return {}
    node = node_rank(env)
    return {SPREAD: "1"} | ({} if node is None else {NODE_RANK: str(node)})


def is_loopback(host: str) -> bool:
    """Whether a name or address always refers to the local host."""
    return host in ("", "localhost", "::1", "0.0.0.0") or host.startswith("127.")


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
