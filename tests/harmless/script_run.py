"""One run of a script: in a folder of its own, with everything kept that it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harmless.describe_text import without_addresses, without_own_frames
from tests.harmless.shape import Shape

TIMEOUT_S = 240
NOT_RUN_CODE = 77
"""By which a script says that it can't run here, and why on stderr."""

_LAUNCHER = str(Path(__file__).with_name("watched.py"))


@dataclass(frozen=True)
class Outcome:
    """What can be seen of a run from outside.

    Attributes:
        code: Exit code, negative for a signal, None if it had to be ended.
        out: Lines on standard output.
        err: Lines on standard error, without dpwatch's own and its frames in tracebacks.
        said: dpwatch's own lines.
        files: Hash of each file that it left, by path.
        steps: Steps that dpwatch saw, None if it does not say.
    """

    code: int | None
    out: list[str]
    err: list[str]
    said: list[str]
    files: dict[str, str]
    steps: int | None


def run(shape: Shape, place: Path, *, probed: bool) -> Outcome:
    """Runs a shape in `place/work`, which is emptied before.

    Args:
        shape: What to run.
        place: Short, since sockets lie below it; the same for runs that are compared.
        probed: With the probe.
    """
    work, told = place / "work", place / "told.json"
    for each in (work, place / "home", place / "rt"):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir(parents=True)
    told.unlink(missing_ok=True)
    port = _free_port()
    launcher = [_LAUNCHER, "watch" if probed else "plain", str(told)] if shape.watched else []
    words = shape.command(port, *launcher)
    if probed and not shape.watched:
        ours = ["-m", "dpwatch", "run", "--quiet", "--json", str(told), "--"]
        words = [sys.executable, *ours, *words]
    code, out, err = _finished(words, work, _environment(place, port), shape.stdin)
    return Outcome(
        code=code,
        out=out,
        err=without_own_frames(line for line in err if not line.startswith("dpwatch: ")),
        said=[line for line in err if line.startswith("dpwatch: ")],
        files=_files(work),
        steps=_steps(told) if probed else None,
    )


def _finished(
    words: list[str], folder: Path, env: dict[str, str], stdin: str
) -> tuple[int | None, list[str], list[str]]:
    """Runs a command to its end, in a session of its own, of which nothing is left afterwards."""
    with subprocess.Popen(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            out, err = process.communicate(stdin.encode(), timeout=TIMEOUT_S)
            code = process.returncode
            code = 128 - code if code < 0 else code
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            code = None
    return code, _lines(out), _lines(err)


def _lines(raw: bytes) -> list[str]:
    return without_addresses(raw.decode(errors="backslashreplace")).splitlines()


def _environment(place: Path, port: int) -> dict[str, str]:
    """What a user's shell would have."""
    ours = ("DPWATCH", "PYTHONPATH", "PYTEST", "COLUMNS", "LINES")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "HOME": str(place / "home"),
        "MASTER_PORT": str(port),
        "TORCHINDUCTOR_CACHE_DIR": str(place / "home" / "inductor"),
        "DPWATCH_RUNTIME_DIR": str(place / "rt"),
        "DPWATCH_HUB_LINGER_S": "0.5",
    }


def _files(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found[str(path.relative_to(folder))] = hashlib.sha1(path.read_bytes()).hexdigest()[:12]
    return found


def _steps(told: Path) -> int | None:
    """Steps of all runs together, from a summary or from a number."""
    try:
        read = json.loads(told.read_text())
    except (OSError, ValueError):
        return None
    return read if isinstance(read, int) else sum(run["steps"] for run in read["runs"])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_end_of_hubs(place: Path) -> None:
    """Hubs end by themselves; what still runs after some seconds is ended."""
    deadline = time.monotonic() + 15
    while left := _processes_with(str(place / "rt")):
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _processes_with(text: str) -> list[int]:
    from tests.processes import processes_with

    return processes_with(text)
