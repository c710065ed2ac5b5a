"""`dpwatch doctor`: checks what is installed, reachable and permitted here, and how to fix it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from dpwatch.argument_parser import Commands
from dpwatch.cli.errors import FINE
from dpwatch.text_safety import printable

if TYPE_CHECKING:
    from dpwatch.cli.checks.check import Check

EXAMPLES = """\
examples:
  dpwatch doctor               a line per check; exit code 1 if there is any trouble
  dpwatch doctor --json        the same as one JSON object

Marks: ok; note (works, with something to know); trouble (something will not work here).
It starts a hub and some short processes, stops them, and leaves nothing behind.
"""

IN_TROUBLE = 1
SCHEMA = "dpwatch.doctor/1"

_COLOURS = {"ok": "32", "note": "33", "trouble": "1;31"}
_NAME_WIDTH = 13


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "doctor",
        help="check what is installed, reachable and permitted here, and say how to fix the rest",
        description="Checks everything that dpwatch depends on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print a dpwatch.doctor/1 object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the checks; returns 1 if there is any trouble."""
    found: list[Check] = []
    coloured = not options.json and in_colour()
    with closing(all_checks()) as checks:
        for check in checks:
            found.append(check)
            if not options.json:  # as they finish: torch alone takes seconds
                print(_printable(line(check, coloured=coloured)), flush=True)
    if options.json:
        print(json_text(found))
    else:
        print(f"\n{conclusion(found)}")
    return IN_TROUBLE if any(check.mark == "trouble" for check in found) else FINE


def all_checks() -> Generator[Check, None, None]:
    """Every check in order, run lazily."""
    from dpwatch.cli.checks import host, installed, runs, terminal, training

    yield from installed.checks()
    yield (gpus := host.nvml())
    yield from training.checks(gpus.value if isinstance(gpus.value, int) else None)
    yield from runs.checks()
    yield from host.checks()
    yield from terminal.checks()


def line(check: Check, *, coloured: bool) -> str:
    """A check as one line: mark, name, result, advice."""
    mark = check.mark.ljust(7)
    if coloured:
        mark = f"\x1b[{_COLOURS[check.mark]}m{mark}\x1b[0m"
    advice = f"; {check.advice}" if check.advice else ""
    return f"{mark}  {check.name.ljust(_NAME_WIDTH)}  {printable(check.text + advice)}"


def conclusion(found: Sequence[Check]) -> str:
    """How many there are of each mark."""
    counts = [(sum(c.mark == mark for c in found), mark) for mark in ("ok", "note", "trouble")]
    (fine, _), (notes, _), (troubles, _) = counts
    return f"{fine} ok, {notes} notes, {troubles} in trouble"


def json_text(found: Sequence[Check]) -> str:
    """The `dpwatch.doctor/1` object, indented."""
    import msgspec

    import dpwatch

    told = {
        "schema": SCHEMA,
        "version": dpwatch.__version__,
        "ok": all(check.mark != "trouble" for check in found),
        "checks": found,
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()


def in_colour() -> bool:
    """Whether standard output supports colours, and NO_COLOR is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb")
    return sys.stdout.isatty() and not plain


def _printable(text: str) -> str:
    """Escapes characters that this locale can't encode: the locale is one of the checks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
