"""A check's outcome, and asking another process so that what hangs or crashes there stays there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

OK, NOTE, TROUBLE = "ok", "note", "trouble"


class Check(msgspec.Struct, frozen=True):
    """What was found about one thing.

    Attributes:
        name: The thing.
        mark: `ok`; `note` (works, and there is something to know, or a figure will be missing);
            `trouble` (something of dpwatch will not work here).
        text: What was found.
        advice: What to do about it, "" where there is nothing to do.
        value: The finding for programs; None where it is unknown or there is none.
    """

    name: str
    mark: str
    text: str
    advice: str = ""
    value: str | int | float | bool | None = None


def ask(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Runs a command that prints a JSON object a line.

    It stands in `/`, as hubs do, so that nothing in the current directory is imported.

    Returns:
        All objects' entries together, and why there are not more: "" if the command ended well.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            env=env,
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return _objects(error.stdout or b""), f"no answer within {timeout_s:g} s"
    except OSError as error:
        return {}, f"cannot run {command[0]}: {os.strerror(error.errno or 0)}"
    said = _objects(done.stdout)
    if done.returncode == 0:
        return said, "" if said else "no answer"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return said, lines[-1] if lines and done.returncode > 0 else end


def _objects(output: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in output.splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # somebody else's print, or a line cut off
            continue
        if isinstance(told, dict):
            found.update(told)
    return found


def gibibytes(nbytes: int) -> str:
    """Bytes in GiB."""
    return f"{nbytes / (1 << 30):.1f} GiB"
