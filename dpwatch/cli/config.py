"""`dpwatch config`: every setting's value, its origin, and the allowed values."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dpwatch.argument_parser import Commands
from dpwatch.cli import settings
from dpwatch.cli.errors import FINE
from dpwatch.cli.watch import add_screen_options

EXAMPLES = """\
examples:
  dpwatch config                       the settings in effect, and where each comes from
  dpwatch config > ~/.config/dpwatch/config.toml
                                       write a file with every setting in it
  DPWATCH_THEME=light dpwatch config   the environment overrides the file, a flag overrides both
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "config",
        help="the viewer's settings, and where each comes from",
        description="Prints the viewer's settings in the format of its settings file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_screen_options(parser, argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the settings."""
    print(as_toml(options))
    return FINE


def as_toml(options: argparse.Namespace) -> str:
    """The settings as TOML with comments."""
    path, _ = settings.config_file()
    found = settings.effective(options)
    there = "" if path.exists() else " (does not exist)"
    lines = [
        f"# {_one_line(str(path))}{there}",
        "# Precedence: flag, environment, this file, default.",
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
    """A bool, number or string as TOML, whose basic strings are those of JSON."""
    return json.dumps("…" if value is None else value, ensure_ascii=False)


def _one_line(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
