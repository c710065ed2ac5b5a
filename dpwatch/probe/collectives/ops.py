"""c10d's collectives and point-to-point calls: their names, and which argument is the payload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(kw_only=True, slots=True, frozen=True)
class Op:
    """One spelling of a collective or a point-to-point call.

    Attributes:
        name: As recorded: the same for the list, base, single and coalesced variants.
        payload: Position of the argument this rank passes in, None without one (a barrier).
        peer: For a point-to-point call, the name of the argument that holds the other rank, ""
            without one (a `recv` from any source). None for a collective.
    """

    name: str
    payload: int | None
    peer: str | None = None


SEND = Op(name="send", payload=0, peer="dst")
RECV = Op(name="recv", payload=0, peer="src")
RECV_FROM_ANY = Op(name="recv", payload=0, peer="")

DISPATCHER_OPS = {
    "allreduce_": Op(name="all_reduce", payload=0),
    "allreduce_coalesced_": Op(name="all_reduce", payload=0),
    "broadcast_": Op(name="broadcast", payload=0),
    "reduce_": Op(name="reduce", payload=0),
    "allgather_": Op(name="all_gather", payload=1),
    "_allgather_base_": Op(name="all_gather", payload=1),
    "allgather_coalesced_": Op(name="all_gather", payload=1),
    "allgather_into_tensor_coalesced_": Op(name="all_gather", payload=1),
    "reduce_scatter_": Op(name="reduce_scatter", payload=1),
    "_reduce_scatter_base_": Op(name="reduce_scatter", payload=1),
    "reduce_scatter_tensor_coalesced_": Op(name="reduce_scatter", payload=1),
    "gather_": Op(name="gather", payload=1),
    "scatter_": Op(name="scatter", payload=1),
    "alltoall_": Op(name="all_to_all", payload=1),
    "alltoall_base_": Op(name="all_to_all", payload=1),
    "barrier": Op(name="barrier", payload=None),
    "monitored_barrier_": Op(name="monitored_barrier", payload=None),
    "send": SEND,
    "recv_": RECV,
    "recv_any_source_": RECV_FROM_ANY,
}
"""Ops of the `c10d` namespace; an op's group is its first argument that is a script object."""

GROUP_METHODS = {
    "allreduce": Op(name="all_reduce", payload=0),
    "allreduce_coalesced": Op(name="all_reduce", payload=0),
    "broadcast": Op(name="broadcast", payload=0),
    "reduce": Op(name="reduce", payload=0),
    "allgather": Op(name="all_gather", payload=1),
    "_allgather_base": Op(name="all_gather", payload=1),
    "all_gather_single": Op(name="all_gather", payload=1),
    "all_gather_single_coalesced": Op(name="all_gather", payload=1),
    "allgather_coalesced": Op(name="all_gather", payload=1),
    "allgather_into_tensor_coalesced": Op(name="all_gather", payload=1),
    "reduce_scatter": Op(name="reduce_scatter", payload=1),
    "_reduce_scatter_base": Op(name="reduce_scatter", payload=1),
    "reduce_scatter_single": Op(name="reduce_scatter", payload=1),
    "reduce_scatter_single_coalesced": Op(name="reduce_scatter", payload=1),
    "reduce_scatter_tensor_coalesced": Op(name="reduce_scatter", payload=1),
    "gather": Op(name="gather", payload=1),
    "scatter": Op(name="scatter", payload=1),
    "alltoall": Op(name="all_to_all", payload=1),
    "alltoall_base": Op(name="all_to_all", payload=1),
    "all_to_all_single": Op(name="all_to_all", payload=1),
    "barrier": Op(name="barrier", payload=None),
    "monitored_barrier": Op(name="monitored_barrier", payload=None),
    "send": SEND,
    "recv": RECV,
    "recv_anysource": RECV_FROM_ANY,
}
"""Methods of `ProcessGroup` that Python callers use; each torch version has some of them."""


def nbytes_of(value: Any) -> int:
    """Bytes in a tensor or (nested) list of tensors."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if len(value) == 1 and isinstance(value[0], torch.Tensor):
        return value[0].nbytes
    return sum(map(nbytes_of, value))


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a call only traces shapes, as `torch.compile` does."""
    return type(tensor).__name__ == "FakeTensor" or tensor.is_meta
