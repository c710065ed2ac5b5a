"""c10d's collectives: their plain names, where their payload stands, and their groups' names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(kw_only=True, slots=True, frozen=True)
class Op:
    """One way of spelling a collective.

    Attributes:
        name: As recorded: the same for the list, base, single and coalesced spellings.
        payload: Position of the argument this rank hands in, None for none (a barrier).
    """

    name: str
    payload: int | None


WORLD = "default"
"""The name of the group of all ranks."""

# Point-to-point ops are left out on purpose: only two ranks issue them, so counting them would
# put the group's sequence numbers out of step.
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
}
"""Ops of the `c10d` namespace; an op's group is its first argument that is a script object."""

POINT_TO_POINT_OPS = ("send", "recv_", "recv_any_source_")

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
}
"""Methods of `ProcessGroup` that Python callers go through; torch versions have some of them."""


@dataclass(slots=True)
class Group:
    """A process group as records name it.

    Attributes:
        name: `default` for the world, else what a device mesh calls it and its ranks.
        size: Its ranks' number.
        members: Its ranks in the world.
        uid: c10d's own name for it.
        sequence: Numbers its collectives on this rank.
    """

    name: str
    size: int
    members: list[int]
    uid: str = ""
    sequence: itertools.count[int] = field(default_factory=itertools.count)


class Groups:
    """Knows the groups met so far by c10d's own name for them."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int], Group] = {}
        self._spellings: dict[str, int] = {}

    def of(self, process_group: dist.ProcessGroup) -> Group:
        """The group's name, size and numbering."""
        key = (process_group.group_name, process_group.size())
        group = self._groups.get(key)
        if group is None:
            members = dist.get_process_group_ranks(process_group)
            name = self._name(process_group, members)
            group = self._groups[key] = Group(name=name, size=key[1], members=members, uid=key[0])
        return group

    def _name(self, process_group: dist.ProcessGroup, members: list[int]) -> str:
        if process_group.group_name == dist.group.WORLD.group_name:  # type: ignore[union-attr]
            return WORLD
        name = spelled(members, _role(process_group))
        # Groups of the same ranks count apart; all ranks make and use groups in the same order.
        nth = self._spellings[name] = self._spellings.get(name, 0) + 1
        return name if nth == 1 else f"{name} #{nth}"


def spelled(ranks: Sequence[int], role: str = "ranks") -> str:
    """Names a group by its ranks: `ranks 0,2`; long ones shortened: `ranks 0,8,…,504 (64)`.

    Args:
        ranks: Its ranks in the world.
        role: What to say before them.
    """
    if len(ranks) <= 8:
        return f"{role} " + ",".join(map(str, ranks))
    return f"{role} {ranks[0]},{ranks[1]},…,{ranks[-1]} ({len(ranks)})"


def _role(process_group: dist.ProcessGroup) -> str:
    """The dimension of the device mesh that the group is of (`shard`), else just `ranks`."""
    told: str = getattr(process_group, "group_desc", "")
    return told.removeprefix("mesh_") if told.startswith("mesh_") else "ranks"


def payload_of(value: Any) -> tuple[int, torch.Tensor | None]:
    """Bytes in a tensor or (nested) list of tensors, and the first of them."""
    if isinstance(value, torch.Tensor):
        return value.nbytes, value
    nbytes, first = 0, None
    for item in value:
        more, tensor = payload_of(item)
        nbytes += more
        if first is None:
            first = tensor
    return nbytes, first


def is_fake(value: Any) -> bool:
    """Whether a call only traces shapes, as `torch.compile` does."""
    while isinstance(value, list | tuple):
        if not value:
            return False
        value = value[0]
    return type(value).__name__ == "FakeTensor" or getattr(value, "is_meta", False)
