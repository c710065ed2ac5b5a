"""`--fail-on` and `--on-alert`: act on diagnoses that come up while a command runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable

import msgspec

from dpwatch.cli.errors import CommandError
from dpwatch.run.diagnose import KINDS
from dpwatch.run.model.snapshot import SEVERITIES, Diagnosis, Run
from dpwatch.text_safety import printable

CLOSE_S = 5.0
"""How long alert commands may run after the training command has ended."""


class Alerts:
    """Follows the diagnoses of runs.

    Attributes:
        failing: Whether one matched `fail_on`.

    Raises:
        CommandError: `fail_on` names an unknown kind or severity.
    """

    def __init__(self, fail_on: str | None, on_alert: str | None) -> None:
        self.failing = False
        self._fail_on = _parsed(fail_on)
        self._on_alert = on_alert
        self._held: set[tuple[str, str]] = set()
        self._started: list[subprocess.Popen[bytes]] = []

    def see(self, runs: Iterable[Run]) -> None:
        """Takes the current diagnoses and runs the alert command for each new one."""
        held = set()
        for run in runs:
            for diagnosis in run.diagnoses:
                held.add((run.run_id, diagnosis.kind))
                self.failing |= not self._fail_on.isdisjoint((diagnosis.kind, diagnosis.severity))
                if self._on_alert and (run.run_id, diagnosis.kind) not in self._held:
                    self._tell(self._on_alert, run, diagnosis)
        self._held = held
        self._started = [process for process in self._started if process.poll() is None]

    def _tell(self, command: str, run: Run, diagnosis: Diagnosis) -> None:
        told = {
            "KIND": diagnosis.kind,
            "SEVERITY": diagnosis.severity,
            "TEXT": diagnosis.text,
            "RANKS": ",".join(map(str, diagnosis.ranks)),
            "RUN": run.run_id,
        }
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env={**os.environ, **{f"DPWATCH_ALERT_{k}": printable(v) for k, v in told.items()}},
                stdin=subprocess.PIPE,
                stdout=sys.stderr,  # standard output is the command's
                start_new_session=True,
            )
        except OSError as error:
            print(f"dpwatch: --on-alert: {error.strerror}", file=sys.stderr)
            return
        self._started.append(process)
        if process.stdin is not None:  # a pipe holds far more than a diagnosis, so this can't block
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(msgspec.json.encode(diagnosis))

    def close(self) -> None:
        """Waits for the alert commands, then kills them."""
        deadline = time.monotonic() + CLOSE_S
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()


def _parsed(fail_on: str | None) -> frozenset[str]:
    """The kinds and severities named, plus the severities above those."""
    named = [word.strip() for word in (fail_on or "").split(",") if word.strip()]
    for word in named:
        if word not in (*SEVERITIES, *KINDS):
            raise CommandError(
                f"--fail-on {word}: use {', '.join(SEVERITIES)}, or a kind: {', '.join(KINDS)}"
            )
    lowest = [SEVERITIES.index(word) for word in named if word in SEVERITIES]
    above = SEVERITIES[min(lowest) :] if lowest else ()
    return frozenset((*named, *above))
