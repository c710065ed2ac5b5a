"""The command line: one small module per command.

A command module has `add(subparsers)`, which adds its options, and `run(options) -> int`, which
imports what it needs and returns the exit code. Every error reaches the user as one line on stderr:
a command raises `CommandError`, or lets a library's own error through if it says what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dpwatch.cli.errors import FINE, USAGE, CommandError
from dpwatch.text_safety import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dpwatch`; returns its exit code."""
    from dpwatch.cli.parser import build_parser
    from dpwatch.cli.signals import end_cleanly

    options = build_parser().parse_args(arguments)
    end_cleanly()
    try:
        return int(options.run(options))
    except CommandError as error:
        return _fail(str(error), error.code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); the interpreter's last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except OSError as error:
        return _fail(str(error), USAGE)


def _fail(text: str, code: int) -> int:
    if os.environ.get("DPWATCH_DEBUG") == "1":
        raise
    lines = [printable(line) for line in text.splitlines() or [""]]
    print("dpwatch: " + "\n".join(lines), file=sys.stderr)
    return code
