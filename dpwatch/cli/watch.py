"""`dpwatch`: the dashboard over every live run on this host, or one snapshot of them (`--once`)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpwatch.cli import settings
from dpwatch.cli.errors import FINE, NOTHING_TO_SHOW, CommandError

if TYPE_CHECKING:
    from dpwatch.run.model.snapshot import Snapshot
    from dpwatch.viewer.watcher import Watcher

DRAWN_ELSEWHERE = "TEXTUAL_DRIVER"
"""Set by a program that shows the dashboard, such as textual-serve in a browser."""

ANSWER_S = 2.0
"""How long `--once` waits for hubs to answer."""


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of watching to the main parser."""
    parser.add_argument("--once", action="store_true", help="print one snapshot and exit")
    parser.add_argument(
        "--json", action="store_true", help="with --once: as a dpwatch.summary/1 object"
    )
    parser.add_argument(
        "--last", type=how_many, nargs="?", const=1, metavar="N",
        help="show the last run (or the last N), even after it has ended",
    )  # fmt: skip
    parser.add_argument(
        "--web", action="store_true", help="serve the dashboard to a browser on this host"
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="with --web: the port (default: any free one)"
    )
    add_screen_options(parser)
    parser.set_defaults(run=run)


def add_screen_options(parser: argparse.ArgumentParser, default: object = None) -> None:
    """Adds the options of the screen.

    Args:
        parser: A command's, or the main one, whose values a command's defaults would override.
        default: `argparse.SUPPRESS` for a command's.
    """
    group = parser.add_argument_group("the screen (see also `dpwatch config`)")
    for setting in settings.SCREEN:
        facts: dict[str, Any] = {"default": default, "help": setting.help}
        if setting.default is False:
            facts["action"] = argparse.BooleanOptionalAction
        else:
            facts["metavar"] = setting.key[:1].upper()
        group.add_argument(f"--{setting.key}", **facts)


def screen_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments for `DashboardApp`.

    Raises:
        CommandError: A flag, a variable or the file has a value that is not allowed.
    """
    found = settings.effective(options, settings.SCREEN)
    value = {key: told.value for key, told in found.items()}
    return {
        "ascii_only": value["ascii"],
        "interval_s": value["interval"],
        "theme": f"dpwatch-{value['theme']}",
        "view": value["view"],
        "sort": value["sort"] or "",
    }


def run(options: argparse.Namespace) -> int:
    """Opens the dashboard, or prints once."""
    if options.json and not options.once:
        raise CommandError("--json goes with --once (or with `dpwatch demo`)")
    if options.web:
        if options.once:
            raise CommandError("--web and --once exclude each other")
        if options.last:
            raise CommandError("--web and --last exclude each other")
        from dpwatch.cli.web import serve

        found = settings.effective(options, (*settings.SCREEN, *settings.WEB))
        return serve(found["port"].value, _flags(found))
    if options.port is not None:
        raise CommandError("--port goes with --web")
    from dpwatch.viewer.host_gpus import HostGpus
    from dpwatch.viewer.last_runs import last_runs
    from dpwatch.viewer.watcher import Watcher

    kept = last_runs() if options.last else ()
    watcher = Watcher(gpus=HostGpus().read, kept=kept, most=options.last)
    try:
        if options.once:
            shown = tell(watcher, as_json=options.json)
            return FINE if shown else _nothing(watcher, options.last)
        if options.last and not look(watcher).runs:
            return _nothing(watcher, options.last)
        return dashboard(watcher, options)
    finally:
        watcher.close()


def _flags(found: Mapping[str, settings.Resolved]) -> list[str]:
    """The screen's flags as given, for the dashboard in the browser."""
    words = []
    for setting in settings.SCREEN:
        told = found[setting.key]
        if told.origin == settings.FLAG:
            switch = f"--{'' if told.value else 'no-'}{setting.key}"
            is_switch = setting.default is False  # an interval of 1.0 equals True
            words.append(switch if is_switch else f"--{setting.key}={told.value}")
    return words


def _nothing(watcher: Watcher, last: int | None) -> int:
    """Prints that there is no run, where it looked, and how to start one."""
    looked = ", ".join(watcher.snapshot().places)
    print(
        f"dpwatch: no run {'has been kept' if last else 'on this host'} (looked in {looked}); "
        "start one with `dpwatch demo --gpus 4`, or add `dpwatch.watch()` to a training script",
        file=sys.stderr,
    )
    return NOTHING_TO_SHOW


def how_many(text: str) -> int:
    """A number of runs.

    Raises:
        argparse.ArgumentTypeError: It is not a positive integer.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs, such as 3")
    return int(text)


def tell(watcher: Watcher, *, as_json: bool) -> bool:
    """Prints the current runs, and idle GPUs. Returns: whether there are runs."""
    seen = look(watcher)
    runs = [view.run for view in seen.runs]
    if as_json:
        from dpwatch.cli.output import json_text

        print(json_text(runs, seen.gpus))
    else:
        from dpwatch.cli.output import gpu_table, table

        # This host's GPUs are already shown with its ranks.
        idle = [gpu for gpu in seen.gpus if gpu.host or not runs]
        told = [text for text in (table(runs), gpu_table(idle)) if text]
        if told:
            print("\n\n".join(told))
    return bool(runs)


def look(watcher: Watcher) -> Snapshot:
    """Every live run, as soon as their hubs have answered."""
    deadline = time.monotonic() + ANSWER_S
    while not watcher.complete and time.monotonic() < deadline:
        watcher.next(0.1)
    return watcher.snapshot()


def dashboard(watcher: Watcher, options: argparse.Namespace, waiting_text: str = "") -> int:
    """Opens the dashboard; returns its exit code after it has closed.

    Args:
        watcher: The source of snapshots.
        options: The parsed options.
        waiting_text: See `DashboardApp`.
    """
    require_terminal()
    screen = screen_options(options)
    from dpwatch.tui.app import DashboardApp

    if DRAWN_ELSEWHERE in os.environ:
        from dpwatch.cli.web import end_with

        end_with(os.getppid())
    app = DashboardApp(watcher, waiting_text=waiting_text, **screen)
    app.run()
    return app.return_code or FINE


def on_terminal() -> bool:
    """Whether stdin and stdout are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def require_terminal() -> None:
    """Refuses to draw into a pipe, or on a terminal that can't move its cursor.

    Raises:
        CommandError: stdout is one of these.
    """
    if DRAWN_ELSEWHERE in os.environ:
        return
    if not on_terminal():
        raise CommandError(
            "the dashboard needs a terminal; use --once (or demo --headless) in scripts"
        )
    if os.environ.get("TERM") == "dumb":
        raise CommandError(
            "a terminal with TERM=dumb can't show the dashboard; use --once (or demo --headless)"
        )
