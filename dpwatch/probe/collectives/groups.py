"""Names of process groups in records, and their numbering when groups are destroyed and recreated.

A group is identified by its Python object, which torch keeps while the group exists; only a weak
reference is kept here. torch reuses names, and so does this module, so a group that is destroyed
and recreated stays one row, with its calls numbered from 0 again (`generation`). All ranks create,
destroy and use groups in the same order, so they name them alike.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from dpwatch.probe.collectives.calls import WORLD, Group

MOST_NAMES = 4096
"""Names whose generations are counted; beyond that, counting starts over."""


class Unknown(Exception):
    """torch does not know this group's ranks: `torch.distributed` did not create it."""


class Groups:
    """The groups seen so far. Callers' threads add them, the sender thread removes them."""

    def __init__(self) -> None:
        # By weak reference, since ids are reused.
        self._groups: dict[weakref.ref[Any], Group] = {}
        self._holders: dict[str, weakref.ref[Any]] = {}
        self._generations: dict[str, int] = {}
        self._dead: deque[weakref.ref[Any]] = deque()

    def of(self, process_group: Any) -> Group:
        """The group of that object.

        Raises:
            Unknown: `torch.distributed` did not create it.
        """
        group = self._groups.get(weakref.ref(process_group))
        return self._meet(process_group) if group is None else group

    def newest(self) -> list[Group]:
        """For each name, the last existing group; from any thread."""
        found: dict[str, Group] = {}
        for group in list(self._groups.values()):
            if group.generation >= found.setdefault(group.name, group).generation:
                found[group.name] = group
        return list(found.values())

    def forget(self) -> None:
        """Drops groups that have been freed. On the sender thread."""
        while self._dead:
            group = self._groups.pop(self._dead.popleft(), None)
            if group is not None:  # breaks the reference cycle with its last call
                group.newest = group.unwatched = None

    def _meet(self, process_group: Any) -> Group:
        members = _members(process_group)
        if members is None:
            return self._outlived(process_group)
        name = self._free_name(process_group, members)
        if len(self._generations) >= MOST_NAMES and name not in self._generations:
            self._generations.clear()
            self._holders.clear()
        generation = self._generations[name] = self._generations.get(name, -1) + 1
        group = Group(name, generation, process_group, members, self._dead)
        self._groups[group.ref] = group
        self._holders[name] = group.ref
        return group

    def _outlived(self, process_group: Any) -> Group:
        """The known group of a process group that C++ still uses after Python destroyed it."""
        uid, size = process_group.group_name, process_group.size()
        for group in reversed(list(self._groups.values())):
            if (group.uid, group.size) == (uid, size):
                return group
        raise Unknown(uid)

    def _free_name(self, process_group: Any, members: list[int]) -> str:
        """The group's name. Groups of the same ranks that exist at once get different names."""
        if process_group is dist.group.WORLD:
            return WORLD
        base = name = group_label(members, _role(process_group))
        nth = 1
        while (holder := self._holders.get(name)) is not None and _members(holder()) is not None:
            nth += 1
            name = f"{base} #{nth}"
        return name


def _members(process_group: Any) -> list[int] | None:
    """A group's global ranks; None if it was destroyed, or not created by torch.distributed."""
    if process_group is None:
        return None
    try:
        return dist.get_process_group_ranks(process_group)
    except KeyError:
        return None


def group_label(ranks: Sequence[int], role: str = "ranks") -> str:
    """Names a group by its ranks: `ranks 0,2`; long ones abbreviated: `ranks 0,8,…,504 (64)`.

    Args:
        ranks: Its global ranks.
        role: Prefix.
    """
    if len(ranks) <= 8:
        return f"{role} " + ",".join(map(str, ranks))
    return f"{role} {ranks[0]},{ranks[1]},…,{ranks[-1]} ({len(ranks)})"


def _role(process_group: Any) -> str:
    """The name of the group's dimension in a device mesh (`shard`), otherwise `ranks`."""
    told: str = getattr(process_group, "group_desc", "")
    return told.removeprefix("mesh_") if told.startswith("mesh_") else "ranks"
