"""Requests to start a run's hub: a file `wanted` in the run's directory.

A rank under `dpwatch run` starts no process: `dpwatch run` finds the file and starts the hub. So
does any viewer, for ranks that should not start one themselves. A running `dpwatch run` holds a
lock next to the run directories, so that ranks on other hosts, which it does not serve, do not wait
for it.
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

from dpwatch.runtime import launcher_env
from dpwatch.runtime.processes import exists
from dpwatch.runtime.run_dir import RunDir, is_locked, opened, read_small
from dpwatch.wire.messages import PROTOCOL_VERSION

SESSION = "DPWATCH_SESSION"
SESSION_DIR = "DPWATCH_SESSION_DIR"
"""Set by `dpwatch run`: its session number, and the runtime directory that it watches on its
host."""

_HANDED_ON = (
    SESSION,
    launcher_env.HEAD,
    "DPWATCH_KEYS",
    "DPWATCH_HUB_LINGER_S",
    "MASTER_ADDR",
    "SLURM_STEP_NODELIST",
    "XDG_CONFIG_HOME",
)
"""Environment variables of a rank that its hub depends on."""


class HubRequest(msgspec.Struct, frozen=True):
    """A rank's request for a hub.

    Attributes:
        pid: Its process id.
        namespace: The pid namespace of that id: a hub must see the same processes.
        protocol: Its protocol version.
        environment: Variables for the hub's environment.
    """

    pid: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
    namespace: str
    protocol: int
    environment: dict[str, str]


_decoder = msgspec.json.Decoder(HubRequest)


def request_hub(place: RunDir) -> None:
    """Writes a request for a hub to a run's directory.

    Raises:
        OSError: It cannot be written.
    """
    kept = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    request = HubRequest(
        os.getpid(),
        _pid_namespace(),
        PROTOCOL_VERSION,
        kept | launcher_env.variables_for_hub(os.environ),
    )
    draft = place.path / f"wanted.{os.getpid()}"
    place.path.mkdir(mode=0o700, exist_ok=True)  # a viewer may have removed an old empty one
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    fd = opened(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(fd, "wb") as file:
        file.write(msgspec.json.encode(request))
    draft.replace(place.wanted_file)


def withdraw(place: RunDir) -> None:
    """Removes this process's request, if there is one."""
    request = read(place)
    if request is not None and request.pid == os.getpid():
        with contextlib.suppress(OSError):
            place.wanted_file.unlink()


def read(place: RunDir) -> HubRequest | None:
    """The request in a run's directory, None if there is none."""
    try:
        return _decoder.decode(read_small(place.wanted_file))
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def can_fulfil(request: HubRequest) -> bool:
    """Whether a hub started from here would suit the rank, and the rank is still alive."""
    if request.protocol != PROTOCOL_VERSION or request.namespace != _pid_namespace():
        return False
    return exists(request.pid)


def is_stale(request: HubRequest) -> bool:
    """Whether the requesting rank has ended, as far as that can be seen from here."""
    return request.namespace == _pid_namespace() and not exists(request.pid)


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class Session:
    """A running `dpwatch run`, as seen by ranks on its host. Held until `close`."""

    def __init__(self, directory: Path, number: str) -> None:
        self._file = _session_file(directory, number)
        self._fd = opened(self._file, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Releases the lock and removes its file."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        os.close(self._fd)


def session_is_alive(directory: Path, number: str) -> bool:
    """Whether a `dpwatch run` of that session number serves the runs in a directory."""
    return is_locked(_session_file(directory, number))


def clear_sessions(directory: Path, older_s: float) -> None:
    """Removes the lock files of killed `dpwatch run`s."""
    for file in directory.glob("session-*"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > older_s and not is_locked(file):
                file.unlink()


def _session_file(directory: Path, number: str) -> Path:
    return directory / f"session-{number}"
