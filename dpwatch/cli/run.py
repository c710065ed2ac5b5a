"""`dpwatch run -- COMMAND`: the user's command, unchanged, with the probe in its processes."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dpwatch.argument_parser import Commands
from dpwatch.cli.errors import CommandError
from dpwatch.text_safety import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpwatch.cli.alerts import Alerts
    from dpwatch.cli.command import Command
    from dpwatch.run.model.snapshot import Run
    from dpwatch.viewer.watcher import Watcher

EXAMPLES = """\
examples:
  dpwatch run -- python train.py
  dpwatch run -- torchrun --nproc-per-node 4 train.py
  dpwatch run --json summary.json --fail-on critical -- accelerate launch train.py
  dpwatch run --compare-without -- python train.py
  dpwatch run --on-alert 'notify-send "$DPWATCH_ALERT_TEXT"' -- torchrun train.py

Watch it live with `dpwatch` in another terminal. Output, signals and exit code of the command pass
through; a summary follows on stderr. dpwatch must be installed in the Python that trains.
"""

TURN_S = 0.1

WATCH_S = 1.0
"""How often hubs are asked while the command runs: they review their runs once a second."""
SETTLE_S = 3.0
"""How long the last frames may take after the command has ended."""

FAILED = 1

MEMORY = ("passive", "exact")


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "run",
        help="run your training command with the probe in each of its processes",
        description="Runs a training command, unchanged, and watches every process that trains.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", help="also write the summary object to FILE")
    parser.add_argument("--quiet", action="store_true", help="no summary on stderr")
    parser.add_argument(
        "--no-output", action="store_true", help="do not show the command's output in `dpwatch`"
    )
    parser.add_argument(
        "--memory",
        choices=MEMORY,
        help="exact: track every tensor on sampled steps, which may change the last bits of some "
        "results; passive (the default): don't (environment: DPWATCH_MEMORY)",
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
        help="run this shell command for each new diagnosis, which it gets in DPWATCH_ALERT_KIND, "
        "_SEVERITY, _TEXT, _RANKS and _RUN, and as JSON on standard input",
    )
    parser.add_argument(
        "--compare-without",
        action="store_true",
        help="run the command three times, twice without dpwatch and once with it, and check that "
        "output, exit code and losses agree (exit 1 if not)",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND…", help="as without dpwatch"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command to its end; returns its exit code, or 1 for `--fail-on`."""
    words = options.command[options.command[:1] == ["--"] :]
    if not words:
        raise CommandError("no command given: dpwatch run -- torchrun --nproc-per-node 4 train.py")
    if options.compare_without:
        from dpwatch.cli import compare_without

        return compare_without.run(words, compare_without.passed_on(options))
    from dpwatch.cli.alerts import Alerts
    from dpwatch.cli.command import Command

    alerts = Alerts(options.fail_on, options.on_alert)
    target = _writable(options.json)
    _check_memory(options.memory or os.environ.get("DPWATCH_MEMORY"))
    watching = Watching.prepared()
    env = watching.environment(output=not options.no_output, memory=options.memory)
    with Command(words, env) as command:
        try:
            runs = watching.follow(command, alerts)
        finally:
            alerts.close()
    _tell(runs, target, quiet=options.quiet, watched=watching.place is not None)
    failed = alerts.failing and not command.code
    return FAILED if failed else command.code


def environment(
    session: str, place: Path | None = None, *, output: bool = True, memory: str | None = None
) -> dict[str, str]:
    """The command's environment: ours, with the start-up hook first in PYTHONPATH.

    Args:
        session: Prefix of the run ids of what the command starts.
        place: The runtime directory, for this host's ranks.
        output: Whether to capture what it prints.
        memory: How memory is measured; None: as our environment says.
    """
    import dpwatch
    from dpwatch.runtime.hub_request import SESSION, SESSION_DIR

    hook = str(Path(dpwatch.__file__).parent / "hook")
    path = os.environ.get("PYTHONPATH")
    # An empty PYTHONPATH is not the same as none: it means the current directory.
    return {
        **os.environ,
        "PYTHONPATH": hook if path is None else f"{hook}{os.pathsep}{path}",
        SESSION: session,
        **({} if place is None else {SESSION_DIR: str(place)}),
        **({} if output else {"DPWATCH_OUTPUT": "0"}),
        **({} if memory is None else {"DPWATCH_MEMORY": memory}),
    }


def _check_memory(asked: str | None) -> None:
    if asked and asked not in MEMORY:
        raise CommandError(f"DPWATCH_MEMORY is {asked!r}: set it to passive or exact")


class Watching:
    """What `dpwatch run` does while the command runs; none of it can stop the command.

    Attributes:
        place: The runtime directory of its runs, None if none can be used.
    """

    def __init__(self, place: Path | None) -> None:
        self.place = place
        self.session = secrets.token_hex(3)

    @classmethod
    def prepared(cls) -> Watching:
        """Finds a runtime directory for the runs; says what is wrong with the usual one."""
        from dpwatch.runtime.paths import RuntimeDirError, private_dir, runtime_dir

        try:
            return cls(runtime_dir(for_runs=True))
        except RuntimeDirError as error:
            why = str(error).partition("; ")[0]
        try:
            place = private_dir()
        except OSError:
            advice = "set DPWATCH_RUNTIME_DIR to a directory you own"
            _say(f"{why}: the command runs unwatched; {advice}")
            return cls(None)
        os.environ["DPWATCH_RUNTIME_DIR"] = str(place)  # for everything started from here
        _say(f"{why}: `DPWATCH_RUNTIME_DIR={place} dpwatch` shows this command's runs meanwhile")
        return cls(place)

    def environment(self, *, output: bool, memory: str | None) -> dict[str, str]:
        """The environment of the command."""
        if self.place is None:
            return dict(os.environ)
        return environment(self.session, self.place, output=output, memory=memory)

    def follow(self, command: Command, alerts: Alerts) -> list[Run]:
        """Follows the command's runs until it ends. Returns: all, in the order they started."""
        from dpwatch.runtime.paths import FALLBACK

        try:
            return [] if self.place is None else self._followed(self.place, command, alerts)
        except Exception as error:  # noqa: BLE001 - such as no files left: the command goes on
            _say(f"no longer watching: {error}")
            return []
        finally:
            if self.place is not None and self.place.name.startswith(FALLBACK):
                with suppress(OSError):  # a hub is in it, and removes it
                    self.place.rmdir()

    def _followed(self, place: Path, command: Command, alerts: Alerts) -> list[Run]:
        # Only now: ZeroMQ's threads must not exist when the command is forked.
        from dpwatch.hub.fork_server import ForkServer
        from dpwatch.runtime.hub_request import Session
        from dpwatch.viewer.local_runs import LocalRuns
        from dpwatch.viewer.watcher import Watcher

        with closing(Session(place, self.session)), closing(ForkServer()) as fork_server:
            # The id of a run over several hosts is shared by these, without this session's prefix.
            watcher = Watcher(
                wanted=lambda run_id: run_id.startswith(f"{self.session}-"),
                session=self.session,
                places=LocalRuns(self.session, fork_server.start),
                release_finished=True,
                scan_s=TURN_S,
            )
            with closing(watcher):
                usual_s, watcher.interval_s = watcher.interval_s, WATCH_S
                _follow(command, watcher, alerts, usual_s)
                runs = [*_earlier(watcher, command), *_look(watcher, alerts)]
        return sorted(runs, key=lambda run: run.began_s)


def _follow(command: Command, watcher: Watcher, alerts: Alerts, usual_s: float) -> None:
    from dpwatch.wire.messages import Command as Told

    while command.turn(TURN_S):
        if command.interrupted_ns is not None:
            watcher.command = Told(None, command.interrupted_ns)
        _look(watcher, alerts)
    watcher.command, watcher.interval_s = Told(command.status, command.interrupted_ns), usual_s
    watcher.scan()
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        runs = _look(watcher, alerts)
        if watcher.complete and all(_is_settled(run) for run in runs):
            break


def _earlier(watcher: Watcher, command: Command) -> list[Run]:
    """Runs replaced by later ones, with the command's exit code."""
    from msgspec.structs import replace

    code = command.status
    return [
        replace(run, command_exit=code, note=run.note if code else "") for run in watcher.earlier
    ]


def _is_settled(run: Run) -> bool:
    """Whether all its ranks have ended and its hub knows the command's exit code.

    A failed rank alone doesn't mean that the run is complete.
    """
    from dpwatch.run.model.snapshot import ENDED

    over = run.state in ENDED and all(rank.state in ENDED for rank in run.ranks)
    return over and run.command_exit is not None


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


def _tell(runs: Sequence[Run], target: Path | None, *, quiet: bool, watched: bool) -> None:
    from dpwatch.cli.output import json_text, report
    from dpwatch.run.derive.titles import with_unique_titles

    runs = with_unique_titles(runs)
    if target is not None:
        target.write_text(json_text(runs) + "\n")
    if quiet or not watched:
        return
    if runs:
        print(report(runs), file=sys.stderr)
    else:
        _say(
            "no process of this command trained: none made an optimizer or a process "
            "group (or their Python has no dpwatch, or was started with -I, -E or -S)"
        )


def _say(text: str) -> None:
    print(f"dpwatch: {printable(text)}", file=sys.stderr)
