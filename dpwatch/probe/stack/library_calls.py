"""Which library call a thread is in, and which process group it is creating there.

Only calls are recognized that may take long and that a person would look for: creating a group, a
data loader, a checkpoint. They are known by file and function; what another version of torch names
differently is not recognized. Prompts are recognized too: of Python, IPython or pdb, or a
notebook's next cell.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from dpwatch.wire.messages import GroupMembers, Meeting

MOST_MEMBERS = 64
_FAR = 80
"""Frames searched."""

INIT, NEW_GROUP, LOADER = "init_process_group", "new_group", "DataLoader"
PROMPT, DEBUGGER = "prompt", "pdb"

_GROUPS = os.path.join("torch", "distributed", "distributed_c10d.py")
_NAMED = {
    (_GROUPS, "init_process_group"): INIT,
    (_GROUPS, "_new_group_with_tag"): NEW_GROUP,
    (_GROUPS, "destroy_process_group"): "destroy_process_group",
    (os.path.join("torch", "serialization.py"), "save"): "torch.save",
    (os.path.join("torch", "serialization.py"), "load"): "torch.load",
    (os.path.join("checkpoint", "state_dict_saver.py"), "save"): "checkpoint.save",
    (os.path.join("checkpoint", "state_dict_loader.py"), "load"): "checkpoint.load",
    (os.path.join("torch", "hub.py"), "load_state_dict_from_url"): "torch.hub",
    (os.path.join("_inductor", "async_compile.py"), "wait"): "torch.compile",
    (os.path.join("_dynamo", "convert_frame.py"), "_compile"): "torch.compile",
}
_PROMPTS = {
    (os.path.join("ipykernel", "kernelapp.py"), "start"),
    (os.path.join("IPython", "terminal", "interactiveshell.py"), "mainloop"),
    (os.path.join("_pyrepl", "main.py"), "interactive_console"),
}
"""Functions that wait for a person's next line while none of their code runs, …"""

_CELL = (os.path.join("IPython", "core", "interactiveshell.py"), "run_code")
"""… which it does here; …"""

_PDB = (f"{os.sep}pdb.py", "interaction")
"""… and the function that waits in the middle of it."""

_NAMES = frozenset(name for _, name in _NAMED)
_LOADER_FILE = os.path.join("torch", "utils", "data", "dataloader.py")


class LibraryCall(NamedTuple):
    """A library call, "" for none, and the group that it creates.

    Attributes:
        worker: For a data loader that waits for a worker process, that worker's number and pid.
    """

    call: str = ""
    meeting: Meeting | None = None
    worker: tuple[int, int] | None = None


NO_CALL = LibraryCall()


def library_call_of(thread: int) -> LibraryCall:
    """The innermost such call that another thread is in.

    Args:
        thread: Its `threading.get_ident()`.
    """
    frames = list(_outwards(sys._current_frames().get(thread)))
    found = _first(iter(frames))
    return found if found is not NO_CALL else LibraryCall(_prompt(thread, frames))


def _prompt(thread: int, frames: Sequence[FrameType]) -> str:
    """The prompt at which a thread waits for a person's next line, "" if it does not."""
    if not frames:
        interactive = hasattr(sys, "ps1") and thread == threading.main_thread().ident
        return PROMPT if interactive else ""
    if _in(frames, _PDB):
        return DEBUGGER
    idle = any(_in(frames, each) for each in _PROMPTS) and not _in(frames, _CELL)
    return PROMPT if idle else ""


def _in(frames: Sequence[FrameType], place: tuple[str, str]) -> bool:
    file, function = place
    codes = (frame.f_code for frame in frames)
    return any(code.co_name == function and code.co_filename.endswith(file) for code in codes)


def library_call_in_traceback(trace: TracebackType | None) -> LibraryCall:
    """The innermost such call that an exception passed."""
    frames: list[FrameType] = []
    while trace is not None:
        frames.insert(0, trace.tb_frame)
        trace = trace.tb_next
    return _first(iter(frames))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(_FAR):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _first(frames: Iterator[FrameType]) -> LibraryCall:
    for frame in frames:
        name, path = frame.f_code.co_name, frame.f_code.co_filename
        if path.endswith(_LOADER_FILE):
            return LibraryCall(LOADER, worker=_awaited(frame))
        if name in _NAMES:
            for (file, function), call in _NAMED.items():
                if name == function and path.endswith(file):
                    return LibraryCall(call, _meeting(frame, call) if file == _GROUPS else None)
    return NO_CALL


def _meeting(frame: FrameType, call: str) -> Meeting | None:
    """What the call was given, or has found out since; None if that is not available yet."""
    if call not in (INIT, NEW_GROUP):
        return None
    try:
        values = frame.f_locals
        if call == INIT:
            size = int(values.get("world_size") or -1)
            started = os.environ.get("WORLD_SIZE", "")
            launched = int(started) if started.isdecimal() and int(started) else None
            if size < 1 and launched is None:
                return None
            return Meeting(INIT, size if size > 0 else launched or 1, launched=launched)
        members = values.get("ranks")
        if members is None:
            return None
        local = bool(values.get("use_local_synchronization"))
        told = sorted(int(each) for each in members)
        group = "" if local else str(values.get("group_name") or "")
        return Meeting(NEW_GROUP, len(told), group, told if len(told) <= MOST_MEMBERS else [])
    except (TypeError, ValueError):
        return None


def _awaited(frame: FrameType | None) -> tuple[int, int] | None:
    """The worker whose batch a data loader's iterator waits for, from private attributes."""
    while frame is not None and frame.f_code.co_filename.endswith(_LOADER_FILE):
        if frame.f_code.co_name == "_next_data":
            try:
                loader = frame.f_locals["self"]
                number = loader._task_info[loader._rcvd_idx][0]
                return number, loader._workers[number].pid
            except (AttributeError, KeyError, IndexError, TypeError):  # of another torch
                return None
        frame = frame.f_back
    return None


def rank_given_to_init(thread: int) -> tuple[int, int] | None:
    """Rank and world size that a thread in `init_process_group` passed to it.

    Returns:
        None if it is not in it; (-1, -1) for values it was not given.
    """
    found = None
    for frame in _outwards(sys._current_frames().get(thread)):
        code = frame.f_code
        if code.co_name != INIT or not code.co_filename.endswith(_GROUPS):
            continue
        found = found or (-1, -1)
        rank, size = frame.f_locals.get("rank"), frame.f_locals.get("world_size")
        if isinstance(rank, int) and isinstance(size, int):
            return rank, size
    return found


class GroupMembership:
    """The process groups this process belongs to besides the world.

    Excluded are those of more than 64 ranks, and all groups if some may have been split off the
    world: earlier versions of torch gave those of different ranks the same name.
    """

    def __init__(self) -> None:
        self._count = 0
        self._told: list[GroupMembers] = []

    def now(self) -> list[GroupMembers]:
        """The current groups: c10d's names and their ranks."""
        world = getattr(sys.modules.get("torch.distributed.distributed_c10d"), "_world", None)
        try:
            count = 0 if world is None else len(world.pg_names)
            if count != self._count:  # only then: to release a group may destroy it
                self._told, self._count = _groups(world), count
        except (AttributeError, RuntimeError, TypeError):  # private API, or changed meanwhile
            self._told = []
        return self._told


def _groups(world: Any) -> list[GroupMembers]:
    default = world.default_pg
    if default is None or getattr(default, "bound_device_id", None) is not None:
        return []
    found: list[GroupMembers] = []
    for group, name in list(world.pg_names.items()):
        members = sorted(world.pg_group_ranks.get(group, ()))
        if group is not default and 0 < len(members) <= MOST_MEMBERS and len(found) < MOST_MEMBERS:
            found.append(GroupMembers(str(name), members))
    return found
