"""Who this process is: its run, its rank, its host."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dpwatch.probe.backends import backend_of_world
from dpwatch.wire.nodes import over_hosts
from dpwatch.wire.paths import clean_run_id

_NAME_CHARS = 24
_HASH_CHARS = 10


@dataclass(kw_only=True, slots=True, frozen=True)
class Identity:
    """A process's place in its run.

    Attributes:
        known: False while the rank is still to be learned (`resolve` tells when that is).
        backend: Of the default process group, "" without one.
    """

    rank: int
    world_size: int
    local_rank: int
    backend: str = ""
    known: bool = True


def resolve() -> Identity:
    """This process's rank: torch.distributed's once initialised, else the environment's.

    A multiprocessing child without `RANK` in its environment is most likely about to call
    `init_process_group(rank=…)`. Until it has, its rank isn't known.
    """
    env = os.environ
    local_rank = _number(env.get("LOCAL_RANK"))
    group = _process_group()
    if group is not None:
        rank, world_size, backend = group
        local = rank if local_rank is None else local_rank
        return Identity(rank=rank, world_size=world_size, local_rank=local, backend=backend)
    env_rank = _number(env.get("RANK"))
    if env_rank is not None:
        return Identity(
            rank=env_rank,
            world_size=_number(env.get("WORLD_SIZE")) or 1,
            local_rank=env_rank if local_rank is None else local_rank,
        )
    known = multiprocessing.parent_process() is None
    return Identity(rank=0, world_size=1, local_rank=0, known=known)


def run_id(incarnation: int = 0) -> str:
    """The run's name, the same in all of its processes, on whatever host.

    `DPWATCH_RUN_ID` if set. Else the script's name with what the ranks have in common: torchrun's
    agent and restart count, a multiprocessing parent, a Slurm step, a process group with a port to
    meet at, or just this process; under `dpwatch run`, with its session before. Over several hosts
    it is only what all of these know: torchrun's rendezvous or the Slurm step.

    Args:
        incarnation: How many runs this process has watched before.
    """
    env = os.environ
    if named := env.get("DPWATCH_RUN_ID"):
        return clean_run_id(named)
    again = f"-{incarnation + 1}" if incarnation else ""
    if (shared := _in_common_over_hosts()) is not None:
        return clean_run_id(f"{script_name()[:_NAME_CHARS]}-{shared}{again}")
    session = f"{env['DPWATCH_SESSION']}-" if env.get("DPWATCH_SESSION") else ""
    return clean_run_id(f"{session}{script_name()[:_NAME_CHARS]}-{_in_common()}{again}")


def _in_common_over_hosts() -> str | None:
    """What the processes of a run on several hosts have in common, None on one host.

    Not torchrun's restart count: an agent counts its own workers' failures, and not those that
    another one restarts it for. A hub begins anew when a run that was over has other processes.
    """
    env = os.environ
    if not over_hosts(env):
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


def _in_common() -> str:
    """What the processes of a run on this host have in common and no other run has."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return f"{os.getppid()}-{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    parent = multiprocessing.parent_process()
    if parent is not None:
        return str(parent.pid)
    if "SLURM_STEP_ID" in env and "SLURM_JOB_ID" in env:
        return f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    if "MASTER_PORT" in env and _number(env.get("WORLD_SIZE")) not in (None, 1):
        # Such as Lightning's, whose first rank is the script itself and starts the others.
        return f"{os.getpgid(0)}-{env['MASTER_PORT']}"
    return str(os.getpid())


def script_name() -> str:
    """What a person would call this program: the script, or the package run with `-m`."""
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    if path is None or path.name in ("-c", "-m"):
        return "python"
    name = path.parent.name if path.stem == "__main__" else path.stem
    return re.sub(r"[^\w.-]+", "-", name) or "python"


def _process_group() -> tuple[int, int, str] | None:
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    try:
        return dist.get_rank(), dist.get_world_size(), backend_of_world(dist)
    except (RuntimeError, ValueError, TypeError):  # being destroyed just now
        return None


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
