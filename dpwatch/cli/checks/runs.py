"""Whether runs can be found and followed here: the runtime directory, a hub in it, keys."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpwatch.cli.checks.check import NOTE, OK, TROUBLE, Check
from dpwatch.cli.checks.child import child, last_words, undisturbed
from dpwatch.runtime.curve_keys import KeysError, keys_path, load_keys
from dpwatch.runtime.paths import (
    IPC_PATH_BYTES,
    LEAST_CHARS,
    RUN_ID_CHARS,
    RunDir,
    RuntimeDirError,
    runtime_dir,
    runtime_path,
    runtime_paths,
)
from dpwatch.runtime.spawn import hub_environment

HUB_S = 20.0
"""How long a hub may take to start and answer."""

TURN_S = 0.02


def checks() -> Iterator[Check]:
    """The runtime directory, a hub, keys. Removes what it created."""
    path = runtime_path()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield directory(path)
        yield hub(path)
        yield keys(keys_path())
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless a run has started in it meanwhile


def directory(path: Path) -> Check:
    """Whether the runtime directory can hold runs, and nobody else can read it."""
    name, value = "runtime dir", str(path)
    existed = path.exists()
    try:
        runtime_dir()
    except RuntimeDirError as error:
        text, _, advice = str(error).partition("; ")
        return Check(name, TROUBLE, text, advice, value)
    mode = stat.S_IMODE(path.stat().st_mode)
    chars = IPC_PATH_BYTES - len(os.fsencode(path)) - len("//ask")
    if chars < RUN_ID_CHARS:
        mark = TROUBLE if chars < LEAST_CHARS else NOTE
        text = f"{path} leaves {max(chars, 0)} characters for a run's name in a socket's path"
        return Check(name, mark, text, "set DPWATCH_RUNTIME_DIR to a shorter path", value)
    if mode & 0o077:
        text = f"{path}, mode {mode:04o}: other users can read it"
        return Check(name, NOTE, text, f"chmod 700 {path}", value)
    made = "" if existed else ", created when needed"
    others = [str(each) for each in runtime_paths() if each != path]
    too = f"; viewers also look in {', '.join(others)}" if others else ""
    return Check(name, OK, f"{path}, yours, mode {mode:04o}{made}{too}", value=value)


def keys(path: Path) -> Check:
    """Whether there are keys that join a run's hosts."""
    try:
        found = load_keys(path)
    except KeysError as error:
        text, _, advice = str(error).partition(": ")
        return Check("keys", TROUBLE, f"{text}: not used", advice, False)
    if found is None:
        text = "none: in a run over several hosts, each host is shown separately"
        return Check("keys", NOTE, text, "dpwatch keys creates them", False)
    told = f"{path}, head {found.head.fingerprint}, client {found.client.fingerprint}"
    return Check("keys", OK, told, value=True)


def hub(path: Path) -> Check:
    """Starts a real hub beside the runs, hidden from viewers, and asks it for its state."""
    began = time.monotonic()
    try:
        with _nook(path) as folder:
            why = _tried(RunDir(folder / "run"), began + HUB_S)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        return Check("hub", NOTE, f"not tried: {why}")
    if why:
        advice = f"run `{sys.executable} -m dpwatch.hub FOLDER` to see why"
        return Check("hub", TROUBLE, f"cannot be started: {why}", advice, False)
    took_s = time.monotonic() - began
    return Check("hub", OK, f"started, answered and ended in {took_s:.1f} s", value=True)


@contextlib.contextmanager
def _nook(path: Path) -> Iterator[Path]:
    """A folder in the runtime directory, removed after the block."""
    folder = None
    try:
        with undisturbed():
            folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=path))
        yield folder
    finally:
        if folder is not None:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def _tried(place: RunDir, deadline: float) -> str:
    """Why there was no answer, "" if there was one."""
    place.path.mkdir(mode=0o700)
    # A child, unlike a run's hub, which detaches itself: so that it can be killed in any case.
    command = [sys.executable, "-m", "dpwatch.hub", str(place.path)]
    with child(command, env=hub_environment(), stdout=subprocess.DEVNULL) as process:
        while place.read_info() is None:
            if process.poll() is not None:
                return _last_words(process, place)
            if time.monotonic() > deadline:
                return f"not ready within {HUB_S:g} s"
            time.sleep(TURN_S)
        return "" if _answers(place, process.pid, deadline) else "it does not answer"


def _answers(place: RunDir, pid: int, deadline: float) -> bool:
    import zmq

    from dpwatch.viewer.follower import Follower

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    follower = Follower(context, place, pid)
    try:
        while not follower.complete and time.monotonic() < deadline:
            follower.ask()
            follower.answers.poll(100)
            follower.poll()
        return follower.complete
    finally:
        follower.close()
        context.term()


def _last_words(process: subprocess.Popen[bytes], place: RunDir) -> str:
    said = b"" if process.stderr is None else process.stderr.read()
    with contextlib.suppress(OSError):
        said += place.log_file.read_bytes()
    return last_words(process.returncode, said)
