"""Asking somebody else to start a run's hub: a file `wanted` in the run's folder.

A rank under `dpwatch run` starts no process: `dpwatch run` finds the file and starts the hub. So
does any viewer, for ranks that had better start none themselves. A `dpwatch run` that is there
holds a lock beside the runs' folders, so that ranks on other hosts, where it isn't, don't wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from dpwatch.wire import nodes
from dpwatch.wire.messages import PROTOCOL_VERSION
from dpwatch.wire.processes import exists
from dpwatch.wire.run_dir import RunDir, is_locked, opened, read_small

SESSION = "DPWATCH_SESSION"
SESSION_DIR = "DPWATCH_SESSION_DIR"
"""Set by `dpwatch run`: its number, and the runtime directory that it looks into on its host."""

_HANDED_ON = (
    SESSION,
    nodes.HEAD,
    "DPWATCH_KEYS",
    "DPWATCH_HUB_LINGER_S",
    "MASTER_ADDR",
    "SLURM_STEP_NODELIST",
    "XDG_CONFIG_HOME",
)
"""What of a rank's environment its hub goes by."""


class Wanted(msgspec.Struct, frozen=True):
    """What a rank writes that wants a hub.

    Attributes:
        pid: Its process, …
        namespace: … in this pid namespace: a hub must see the same processes.
        protocol: What it speaks.
        environment: What its hub's environment is to have.
    """

    pid: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    namespace: str
    protocol: int
    environment: dict[str, str]


_decoder = msgspec.json.Decoder(Wanted)


def ask_for_hub(place: RunDir) -> None:
    """Says in a run's folder that a hub is wanted there.

    Raises:
        OSError: It can't be written.
    """
    kept = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    told = Wanted(
        os.getpid(),
        _pid_namespace(),
        PROTOCOL_VERSION,
        kept | nodes.variables_for_hub(os.environ),
    )
    draft = place.path / f"wanted.{os.getpid()}"
    place.path.mkdir(mode=0o700, exist_ok=True)  # a viewer may have cleared an old empty one
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    fd = opened(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(fd, "wb") as file:
        file.write(msgspec.json.encode(told))
    draft.replace(place.wanted_file)


def take_back(place: RunDir) -> None:
    """Removes this process's request, where there is one."""
    wanted = read(place)
    if wanted is not None and wanted.pid == os.getpid():
        with contextlib.suppress(OSError):
            place.wanted_file.unlink()


def read(place: RunDir) -> Wanted | None:
    """The request in a run's folder, None if there is none."""
    try:
        return _decoder.decode(read_small(place.wanted_file))
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def can_be_met(wanted: Wanted) -> bool:
    """Whether a hub started from here is what the rank wants, and the rank still lives."""
    if wanted.protocol != PROTOCOL_VERSION or wanted.namespace != _pid_namespace():
        return False
    return exists(wanted.pid)


def is_dead(wanted: Wanted) -> bool:
    """Whether the rank has gone that wanted a hub, as far as can be seen from here."""
    return wanted.namespace == _pid_namespace() and not exists(wanted.pid)


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class Session:
    """A `dpwatch run` at work, as ranks on its host can see it. Held until `close`."""

    def __init__(self, directory: Path, number: str) -> None:
        self._file = _session_file(directory, number)
        self._fd = opened(self._file, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Lets go of it."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        os.close(self._fd)


def session_lives(directory: Path, number: str) -> bool:
    """Whether a `dpwatch run` of that number looks after the runs in a directory."""
    return is_locked(_session_file(directory, number))


def clear_sessions(directory: Path, older_s: float) -> None:
    """Removes what killed `dpwatch run`s have left."""
    for file in directory.glob("session-*"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > older_s and not is_locked(file):
                file.unlink()


def _session_file(directory: Path, number: str) -> Path:
    return directory / f"session-{number}"
