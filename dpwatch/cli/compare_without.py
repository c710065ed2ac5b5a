"""`dpwatch run --compare-without`: does the command behave the same with dpwatch?

Runs it three times, twice without dpwatch and once with it, and compares exit codes, output, and
the losses in it. The first two runs tell what differs anyway (see `compare_lines`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpwatch.cli.compare_report import NAMES, Outcome, report
from dpwatch.cli.compare_stdin import Stdin
from dpwatch.cli.errors import FINE, CommandError

DIFFERENT = 1

MARK = "DPWATCH_COMPARE"
"""Set in the environment of each run, to find all processes that an interrupted one started."""

PATIENCE_S = 3.0
"""How long an interrupted command may take to end, and again after SIGTERM."""


def run(words: Sequence[str], options: Sequence[str]) -> int:
    """Runs the command three times and reports whether dpwatch changes anything.

    Args:
        words: The command.
        options: Options of `dpwatch run`, for the run with dpwatch.

    Returns:
        0 if everything that can be judged agrees, else 1.

    Raises:
        CommandError: The command can't be started.
    """
    _say(
        "running the command three times: twice without dpwatch, then once with it. "
        "Files that it writes are written three times, and are not compared"
    )
    folder = Path(tempfile.mkdtemp(prefix="dpwatch-compare-"))
    same = True
    try:
        outcomes = list(_outcomes(words, options, folder))
        lines, same = report(outcomes, _runs_seen(folder / "summary.json"))
        if not same:
            lines.append(f"All output: {folder}/{{{','.join(NAMES)}}}.{{out,err}}")
        print("\n".join(lines))
    except KeyboardInterrupt:
        _say("interrupted: nothing was compared")
        raise
    finally:
        if same:
            shutil.rmtree(folder, ignore_errors=True)
    return FINE if same else DIFFERENT


def passed_on(options: argparse.Namespace) -> list[str]:
    """Options of `dpwatch run` for the run with dpwatch.

    Raises:
        CommandError: An option is given that doesn't apply here.
    """
    for name in ("json", "quiet", "fail_on", "on_alert"):
        if getattr(options, name):
            flag = name.replace("_", "-")
            raise CommandError(f"--{flag} can't be used together with --compare-without")
    memory = getattr(options, "memory", None)
    return [
        *(["--no-output"] if options.no_output else []),
        *(["--memory", memory] if memory else []),
    ]


def _outcomes(words: Sequence[str], options: Sequence[str], folder: Path) -> Iterator[Outcome]:
    shared = {**os.environ, MARK: secrets.token_hex(8)}
    plain = {**shared, "DPWATCH": "0"}  # for scripts that call `dpwatch.watch()` themselves
    shared.pop("DPWATCH", None)
    ours = [sys.executable, "-m", "dpwatch", "run", "--quiet", *options]
    watched = [*ours, "--json", str(folder / "summary.json"), "--", *words]
    with Stdin() as stdin:
        for number, name in enumerate(NAMES, start=1):
            with_it = name == "with"
            _say(f"run {number} of {len(NAMES)}, {'with' if with_it else 'without'} dpwatch")
            command, environment = (watched, shared) if with_it else (words, plain)
            outcome = _to_its_end(name, command, environment, folder, stdin)
            _say(f"exit code {outcome.code} after {outcome.seconds:.1f} s")
            yield outcome


def _to_its_end(
    name: str, words: Sequence[str], environment: Mapping[str, str], folder: Path, stdin: Stdin
) -> Outcome:
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    began = time.monotonic()
    with out.open("wb") as to_out, err.open("wb") as to_err, stdin.opened() as source:
        try:
            process = subprocess.Popen(
                words,
                env=environment,
                stdin=source,
                stdout=to_out,
                stderr=to_err,
            )
        except OSError as error:
            told = os.strerror(error.errno or 0)
            raise CommandError(f"cannot run {words[0]}: {told}") from None
        try:
            code = process.wait()
        except BaseException:  # interrupted, or told to end
            _end(process, environment[MARK])
            raise
    seconds = time.monotonic() - began
    return Outcome(name, 128 - code if code < 0 else code, seconds, out, err)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Lets an interrupted command end, then sends SIGTERM, then kills everything it started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
    while left := _marked(mark):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        time.sleep(0.05)


def _marked(mark: str) -> list[int]:
    """Living processes whose environment has the mark (zombies have none)."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            held = entry.read_bytes()
        except OSError:
            continue
        if needle in held.split(b"\0"):
            found.append(int(entry.parent.name))
    return found


def _runs_seen(summary: Path) -> list[Any]:
    """The runs that dpwatch saw, as in its summary."""
    try:
        told: list[Any] = json.loads(summary.read_text())["runs"]
    except (OSError, ValueError, KeyError):
        return []
    return told


def _say(text: str) -> None:
    print(f"dpwatch: {text}", file=sys.stderr, flush=True)
