"""`dpwatch run -- COMMAND`: the user's own command, unchanged, with the probe in its processes."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dpwatch.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpwatch.cli.alerts import Alerts
    from dpwatch.cli.command import Command
    from dpwatch.hub.follow import Watcher
    from dpwatch.hub.snapshot import Run

EXAMPLES = """\
examples:
  dpwatch run -- python train.py
  dpwatch run -- torchrun --nproc-per-node 4 train.py
  dpwatch run --json summary.json --fail-on critical -- accelerate launch train.py
  dpwatch run --compare-without -- python train.py
  dpwatch run --on-alert 'notify-send "$DPWATCH_ALERT_TEXT"' -- torchrun train.py

Watch it live with `dpwatch` in another terminal. The command's output, signals and exit code pass
through; a summary follows on stderr. dpwatch must be installed in the Python that trains.
"""

TURN_S = 0.1
SETTLE_S = 3.0
"""How long the last frames may take once the command has ended."""

FAILED = 1


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes the command."""
    parser = commands.add_parser(
        "run",
        help="run your own training command with the probe in each of its processes",
        description="Runs a training command unchanged and watches every process that trains.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", help="write the summary object to FILE too")
    parser.add_argument("--quiet", action="store_true", help="no summary on stderr")
    parser.add_argument(
        "--no-output", action="store_true", help="what the command prints is not shown by `dpwatch`"
    )
    parser.add_argument(
        "--fail-on",
        metavar="WHAT",
        help="exit with 1 if there was such a diagnosis: info, warning, critical (at or above), "
        "or kinds such as straggler,hang",
    )
    parser.add_argument(
        "--on-alert",
        metavar="CMD",
        help="run this shell command at each new diagnosis; DPWATCH_ALERT_KIND, _SEVERITY, _TEXT, "
        "_RANKS and _RUN tell which, its standard input has it as JSON",
    )
    parser.add_argument(
        "--compare-without",
        action="store_true",
        help="run the command three times, twice without dpwatch and once with it, and say whether "
        "output, exit code and losses agree (exit 1 if not)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND…")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command to its end; returns its exit code, or 1 for `--fail-on`."""
    words = options.command[options.command[:1] == ["--"] :]
    if not words:
        raise CommandError("say what to run: dpwatch run -- torchrun --nproc-per-node 4 train.py")
    if options.compare_without:
        from dpwatch.cli import compare_without

        return compare_without.run(words, compare_without.passed_on(options))
    from dpwatch.cli.alerts import Alerts
    from dpwatch.cli.command import Command
    from dpwatch.hub.follow import Watcher
    from dpwatch.wire.paths import runtime_dir

    alerts = Alerts(options.fail_on, options.on_alert)
    target = _writable(options.json)
    runtime_dir()  # before anything is started: whether runs can be seen at all
    session = secrets.token_hex(3)
    with Command(words, environment(session, output=not options.no_output)) as command:
        # Only now: ZeroMQ's threads must not be there when the command is forked off.
        # A run over several hosts has an id that all of these share, and not this session's.
        watcher = Watcher(wanted=lambda run_id: run_id.startswith(f"{session}-"), session=session)
        try:
            runs = _follow(command, watcher, alerts)
        finally:
            watcher.close()
            alerts.close()
    _tell(runs, target, quiet=options.quiet)
    failed = alerts.failing and not command.code
    return FAILED if failed else command.code


def environment(session: str, *, output: bool = True) -> dict[str, str]:
    """The command's environment: this one, with the start-up hook before PYTHONPATH.

    Args:
        session: Begins the run ids of what is started.
        output: What it prints is to be shown too.
    """
    import dpwatch

    hook = str(Path(dpwatch.__file__).parent / "hook")
    path = os.environ.get("PYTHONPATH")
    # An empty PYTHONPATH means something else than none: the directory that Python starts in.
    return {
        **os.environ,
        "PYTHONPATH": hook if path is None else f"{hook}{os.pathsep}{path}",
        "DPWATCH_SESSION": session,
        **({} if output else {"DPWATCH_OUTPUT": "0"}),
    }


def _follow(command: Command, watcher: Watcher, alerts: Alerts) -> list[Run]:
    while command.turn(TURN_S):
        _look(watcher, alerts)
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        runs = _look(watcher, alerts)
        if watcher.complete and all(run.state in ("finished", "failed", "lost") for run in runs):
            break
    return _look(watcher, alerts)


def _look(watcher: Watcher, alerts: Alerts) -> list[Run]:
    snapshot = watcher.next(TURN_S) or watcher.snapshot()
    runs = [view.run for view in snapshot.runs]
    alerts.see(runs)
    return runs


def _writable(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    try:
        path.open("a").close()
    except OSError as error:
        raise CommandError(f"cannot write --json {name}: {error.strerror}") from None
    return path


def _tell(runs: Sequence[Run], target: Path | None, *, quiet: bool) -> None:
    from dpwatch.cli.output import json_text, report

    runs = runs[::-1]  # in the order they began
    if target is not None:
        target.write_text(json_text(runs) + "\n")
    if quiet:
        return
    if runs:
        print(report(runs), file=sys.stderr)
    else:
        print(
            "dpwatch: no process of this command trained: none made an optimizer or a process "
            "group (or their Python has no dpwatch, or was started with -I, -E or -S)",
            file=sys.stderr,
        )
