"""Child processes for checks: a hang or crash stays in the child, which ends with this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

END_S = 5.0
"""How long a process may take to end after SIGTERM."""

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextlib.contextmanager
def undisturbed() -> Iterator[set[signal.Signals | int]]:
    """Delays signals that would end this process until after the block. Yields: the mask before."""
    before: set[signal.Signals | int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING))
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def child(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block.

    Its working directory is `/`, as for hubs, so that it imports nothing from ours.

    Raises:
        OSError: It can't be started.
    """
    process = None
    try:
        with undisturbed() as mask:  # otherwise a signal might leave the process behind
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=env,
                cwd="/",
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            )
        yield process
    finally:
        if process is not None:
            with undisturbed():
                _end(process)


def ask(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Runs a command that prints a JSON object per line.

    Returns:
        The merged entries of all objects, and why there are no more: "" after exit code 0.
    """
    try:
        with child(command, env=env) as process:
            output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        return _objects(error.stdout or b""), f"no answer within {timeout_s:g} s"
    except OSError as error:
        return {}, f"cannot run {command[0]}: {os.strerror(error.errno or 0)}"
    said = _objects(output)
    if process.returncode == 0:
        return said, "" if said else "no answer"
    return said, last_words(process.returncode, errors)


def last_words(code: int, errors: bytes) -> str:
    """The last line of a process's stderr, or how it ended."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _objects(output: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in output.splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # printed by something else, or cut off
            continue
        if isinstance(told, dict):
            found.update(told)
    return found
