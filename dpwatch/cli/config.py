"""`dpwatch config`: every setting's value, where it comes from, and what else it could be."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dpwatch.cli import settings
from dpwatch.cli.errors import FINE
from dpwatch.cli.watch import add_screen_options

EXAMPLES = """\
examples:
  dpwatch config                       what holds here, and why
  dpwatch config > ~/.config/dpwatch/config.toml
                                       a file to begin with, every setting in it
  DPWATCH_THEME=light dpwatch config   the environment counts before the file, a flag before both
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes the command."""
    parser = commands.add_parser(
        "config",
        help="the viewer's settings, and where each comes from",
        description="Prints the viewer's settings as a file that could hold them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_screen_options(parser, argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints them."""
    print(told(options))
    return FINE


def told(options: argparse.Namespace) -> str:
    """The settings as TOML with comments."""
    path, _ = settings.config_file()
    found = settings.effective(options)
    there = "" if path.exists() else " (not there)"
    lines = [
        f"# {_one_line(str(path))}{there}",
        "# What counts: a flag, then the environment, then this file, then the default.",
    ]
    for setting in settings.SETTINGS:
        now = found[setting.key]
        unset = "# " if now.value is None else ""
        flag = f"--{setting.key}, {setting.variable}"
        origin = _one_line(now.origin) if now.origin != str(path) else "this file"
        lines += [
            "",
            f"# {setting.help[:1].upper()}{setting.help[1:]}: {setting.allowed()} ({flag})",
            f"{unset}{setting.key} = {_toml(now.value)}  # {origin}",
        ]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A switch, a number or a text; JSON's strings are TOML's basic ones."""
    return json.dumps("…" if value is None else value, ensure_ascii=False)


def _one_line(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
