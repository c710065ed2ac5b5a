"""Identifies this process: its run, its rank, its host.

Ranks of one job belong to one run, however they were started. What they share is where they
rendezvous: the port or file of the job's store. Every other training process, such as a worker of a
sweep, is a run of its own, whoever started it.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dpwatch.probe.send.backend import backend_of_world
from dpwatch.runtime.launcher_env import is_multi_host
from dpwatch.runtime.paths import clean_run_id

_NAME_CHARS = 24
_WORKER_CHARS = 60
_HASH_CHARS = 10

_FAR = 80
"""Frames searched for `init_process_group`."""

_FUTURES = "concurrent.futures.process"
_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")
"""Job ids set by MPI launchers, for groups without a store."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Identity:
    """A process's place in its run.

    Attributes:
        known: False while the rank is not known yet (see `resolve`).
        backend: Backend of the default process group, "" without one.
    """

    rank: int
    world_size: int
    local_rank: int
    backend: str = ""
    known: bool = True


def resolve(thread: int | None = None) -> Identity:
    """This process's rank: from torch.distributed once initialized, else from its launcher.

    While `init_process_group` waits for other ranks, the arguments given to it count. A
    multiprocessing child will most likely call it: until then its rank is not known, nor does a
    rank count that it only inherited from its parent.

    Args:
        thread: The training thread's `threading.get_ident()`.
    """
    env = os.environ
    local_rank = _number(env.get("LOCAL_RANK"))
    child = multiprocessing.parent_process() is not None
    group = _process_group() or _joining(thread, env)
    if group is not None:
        rank, world_size, backend = group
        return Identity(
            rank=max(rank, 0),
            world_size=world_size,
            local_rank=max(rank, 0) if local_rank is None else local_rank,
            backend=backend,
            known=rank >= 0,
        )
    env_rank = _number(env.get("RANK"))
    if env_rank is not None and not (child and _inherited("RANK", env)):
        return Identity(
            rank=env_rank,
            world_size=_number(env.get("WORLD_SIZE")) or 1,
            local_rank=env_rank if local_rank is None else local_rank,
        )
    return Identity(rank=0, world_size=1, local_rank=0, known=not child)


def run_id(me: Identity, incarnation: int = 0, thread: int | None = None) -> str:
    """The run's id, the same in all of its processes on any host.

    `DPWATCH_RUN_ID` if set. Otherwise the script's name plus a hash of where the ranks rendezvous,
    or the process id if it is alone; under `dpwatch run`, preceded by its session number. Over
    several hosts, only what all of them know: torchrun's rendezvous or the Slurm step.

    Args:
        me: This process's identity.
        incarnation: Number of runs this process has watched before.
        thread: As for `resolve`.
    """
    env = os.environ
    if named := env.get("DPWATCH_RUN_ID"):
        return clean_run_id(named)
    again = f"-{incarnation + 1}" if incarnation else ""
    script = script_name()[:_NAME_CHARS]
    shared = _in_common_over_hosts() if me.world_size > 1 else None
    if shared is not None:
        return clean_run_id(f"{script}-{shared}{again}")
    session = f"{env['DPWATCH_SESSION']}-" if env.get("DPWATCH_SESSION") else ""
    shared = _in_common(thread) if me.world_size > 1 else str(os.getpid())
    return clean_run_id(f"{session}{script}-{shared}{again}")


def title(me: Identity) -> str:
    """Human-readable name of the run: the script, and which of its workers trains alone."""
    return f"{script_name()} {worker(me)}".rstrip()


def worker(me: Identity) -> str:
    """The name of a multiprocessing child that trains alone, "" for any other process."""
    if me.world_size > 1 or multiprocessing.parent_process() is None:
        return ""
    return str(multiprocessing.current_process().name)[:_WORKER_CHARS]


def task() -> object:
    """The pool task that the calling thread is working on, None outside of pools.

    It is read from local variables of the standard library's worker loops.
    """
    pool, futures = sys.modules.get("multiprocessing.pool"), sys.modules.get(_FUTURES)
    loops = {
        getattr(getattr(pool, "worker", None), "__code__", None): "completed",
        getattr(getattr(futures, "_process_worker", None), "__code__", None): "call_item",
    }
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        variable = loops.get(frame.f_code)
        if variable is not None:
            values = frame.f_locals
            found = values.get(variable)
            if sys.version_info < (3, 13):  # a copy, which would keep the task's arguments alive
                values.clear()
            return getattr(found, "work_id", found)
        frame = frame.f_back
    return None


def _in_common_over_hosts() -> str | None:
    """What the processes of a run on several hosts have in common, None on one host.

    Not torchrun's restart count: an agent counts its own workers' failures, but not restarts caused
    by another agent. A hub starts over if a finished run gets new processes.
    """
    env = os.environ
    if not is_multi_host(env):
        return None
    if "TORCHELASTIC_RUN_ID" not in env and "SLURM_STEP_ID" in env and "SLURM_JOB_ID" in env:
        return f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    told = [
        env.get(name, "")
        for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")
    ]
    if not any(told):
        return None
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:_HASH_CHARS]


def _in_common(thread: int | None) -> str:
    """What the processes of a run on this host, and no other run, have in common.

    Querying the group's store takes its lock for a moment, so it is queried once.
    """
    env = os.environ
    parent = multiprocessing.parent_process()
    place = "" if parent is not None else _met_by_launcher(env)
    place = place or _place_of(_default_store()) or _joined_at(thread, env)
    if not place and "MASTER_PORT" in env:
        place = f"port {env['MASTER_PORT']}"
    if place:
        return hashlib.sha256(place.encode()).hexdigest()[:_HASH_CHARS]
    job = next((env[name] for name in _JOBS if name in env), "")
    return job or str(os.getpgid(0) if parent is None else parent.pid)


def _met_by_launcher(env: Mapping[str, str]) -> str:
    """Where the launcher lets all ranks of the job rendezvous, "" if it does not say.

    A port serves one job after another. torchrun's log directory distinguishes jobs, and its
    restart count the attempts of one job. Without them, a hub that has seen a run end starts over
    with the next.
    """
    if "RANK" not in env or "MASTER_PORT" not in env or _number(env.get("WORLD_SIZE")) in (None, 1):
        return ""
    if "TORCHELASTIC_RUN_ID" not in env:
        return f"port {env['MASTER_PORT']}"
    logs = os.path.dirname(os.path.dirname(env.get("TORCHELASTIC_ERROR_FILE", "")))
    names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return " ".join([*(env.get(name, "") for name in names), logs])


def _inherited(name: str, env: Mapping[str, str]) -> bool:
    """Whether a variable is unchanged since this process, or the one it forked from, started."""
    try:
        before = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(f"{name}={env[name]}") in before


def script_name() -> str:
    """Human-readable name of this program: the script, or the package run with `-m`."""
    return _name_of(sys.argv[0] if sys.argv else "")


@functools.lru_cache(maxsize=1)
def _name_of(program: str) -> str:
    path = Path(program) if program else None
    if path is None or path.name in ("-c", "-m"):
        return "python"
    name = path.parent.name if path.stem == "__main__" else path.stem
    return re.sub(r"[^\w.-]+", "-", name) or "python"


_Group = tuple[int, int, str]
"""Rank, world size, backend."""


def _process_group() -> _Group | None:
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    try:
        return dist.get_rank(), dist.get_world_size(), backend_of_world(dist)
    except (RuntimeError, ValueError, TypeError):  # being destroyed just now
        return None


def group_now() -> int:
    """Identifies the current default process group, 0 without one.

    It is the address, which another group may have later.
    """
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    group = getattr(getattr(c10d, "GroupMember", None), "WORLD", None)
    return 0 if group is None else id(group)


def _default_store() -> Any:
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    try:
        return None if c10d is None else c10d._get_default_store()
    except (AttributeError, RuntimeError, ValueError):  # private; and there may be no group
        return None


def _place_of(store: Any) -> str:
    """Where other processes find a store, "" if they cannot."""
    while (inner := getattr(store, "underlying_store", None)) is not None:
        store = inner
    port, path = getattr(store, "port", None), getattr(store, "path", None)
    if isinstance(port, int) and port:
        return f"port {port}"
    return f"file {os.path.realpath(path)}" if isinstance(path, str) and path else ""


def _joining(thread: int | None, env: Mapping[str, str]) -> _Group | None:
    """The arguments a thread gave to `init_process_group`, in which it waits for other ranks.

    Returns:
        The future group, with rank −1 if that is not known yet; None if the thread is not in there.
    """
    frame = None if thread is None else _frame_of_init(thread)
    if frame is None:
        return None
    given = frame.f_locals
    rank, size = given.get("rank"), given.get("world_size")
    rank = rank if isinstance(rank, int) and rank >= 0 else _number(env.get("RANK"))
    size = size if isinstance(size, int) and size > 0 else _number(env.get("WORLD_SIZE"))
    return (-1, 1, "") if rank is None or size is None else (rank, size, "")


def _joined_at(thread: int | None, env: Mapping[str, str]) -> str:
    """Where a thread in `init_process_group` waits for the others, "" if it is not in there."""
    frame = None if thread is None else _frame_of_init(thread)
    if frame is None:
        return ""
    store, url = frame.f_locals.get("store"), frame.f_locals.get("init_method")
    if store is not None:
        return _place_of(store)
    if not isinstance(url, str) or url.startswith("env:"):
        return f"port {env['MASTER_PORT']}" if "MASTER_PORT" in env else ""
    if port := re.match(r"tcp://[^/?]*:(\d+)", url):
        return f"port {port[1]}"
    file = re.match(r"file://([^?]*)", url)
    return f"file {os.path.realpath(file[1])}" if file else ""


def _frame_of_init(thread: int) -> FrameType | None:
    frame = sys._current_frames().get(thread)
    for _ in range(_FAR):
        if frame is None:
            return None
        code = frame.f_code
        if code.co_name == "init_process_group" and code.co_filename.endswith(_C10D):
            return frame
        frame = frame.f_back
    return None


_C10D = os.path.join("torch", "distributed", "distributed_c10d.py")


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
