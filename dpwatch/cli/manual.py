"""The manual page, `man dpwatch`, from the parser: `python -m dpwatch.cli.manual FILE` writes it.

What a parser doesn't know is here: exit codes, variables and files. The page is checked in, so that
packages can install it without running anything; a test holds it equal to the parser.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap

import dpwatch
from dpwatch.cli import settings
from dpwatch.cli.command_line import Argument, Command, command_line
from dpwatch.cli.parser import build_parser

WIDTH = 78
"""Width of the source's lines; mandoc warns about lines over 80 bytes."""

DESCRIPTION = """\
dpwatch shows what a distributed PyTorch training run is doing and what is wrong with it: per rank
the step time and its phases, device memory by category, every collective with its bytes and
latency and the last rank to arrive, GIL wait and idle time.

Without a command it shows every run of this user on this host, or waits for one. A run is watched
if it was started by `dpwatch run` or calls dpwatch.watch() itself. In the dashboard, `?` lists the
keys of the current view.
"""

EXITS = (
    ("0", "Success."),
    (
        "1",
        "Training failed, `run --fail-on` found such a diagnosis, `run --compare-without` found "
        "a difference, or `doctor` found trouble.",
    ),
    ("2", "Invalid command line, setting or file; one line on stderr says which."),
    ("3", "There is no run, or no keys, to show."),
    ("126, 127", "`run`: the command can't be executed, or was not found."),
    ("128+n", "Ended by signal n; 130 is Ctrl-C."),
)
EXITS_AFTER = "Otherwise `dpwatch run` exits with the exit code of its command."

ENVIRONMENT = (
    ("DPWATCH_CONFIG", "The settings file, which must then exist."),
    (
        "DPWATCH_RUNTIME_DIR",
        "Where runs and viewers meet: set it to the same for both. Mode 0700.",
    ),
    ("DPWATCH_KEYS", "The folder of the keys that join a run's hosts."),
    (
        "DPWATCH_HEAD",
        "HOST or HOST:PORT of a run's head, if it is not MASTER_ADDR and a port derived from "
        "the run's id.",
    ),
    ("DPWATCH", "0 turns the probe off in a script that calls dpwatch.watch()."),
    ("DPWATCH_MEMORY", "passive or exact, as with `run --memory`."),
    (
        "DPWATCH_OUTPUT",
        "0: don't capture what a process prints. 1: do, also without `dpwatch run`.",
    ),
    ("DPWATCH_HUB_LINGER_S", "How many seconds a hub stays after its last rank and viewer (20)."),
    ("DPWATCH_DEBUG", "1 shows tracebacks."),
    ("NO_COLOR", "No colours, if not empty."),
)

FILES = (
    (
        "~/.config/dpwatch/config.toml",
        "Settings, as `dpwatch config` prints them; under $XDG_CONFIG_HOME if that is set.",
    ),
    (
        "~/.config/dpwatch/keys/",
        "Keys, as `dpwatch keys` creates them, readable by their owner only; under "
        "$XDG_CONFIG_HOME if that is set.",
    ),
    (
        "$XDG_RUNTIME_DIR/dpwatch/, else /tmp/dpwatch-UID/",
        "A folder per watched run, and the last eight runs that have ended.",
    ),
)


def page(root: Command, date: str) -> str:
    """The page, in roff with the macros of man(7).

    Args:
        root: The command line.
        date: When it last changed, such as 2026-01-31.
    """
    lines = [
        r".\" Made by `make manual` from the parser: change that.",
        f'.TH DPWATCH 1 {date} "dpwatch {dpwatch.__version__}" "User Commands"',
        ".nh",
        ".SH NAME",
        rf"dpwatch \- {_text(_lower(root.description.rstrip('.')))}",
        ".SH SYNOPSIS",
        "\n.br\n".join(map(_synopsis, root)),
        ".SH DESCRIPTION",
        *_paragraphs(DESCRIPTION),
        ".SH OPTIONS",
        *_arguments(root.options),
        ".SH COMMANDS",
    ]
    for command in root.commands:
        lines += _command(command, root)
    lines += [".SH EXIT STATUS", *_terms(EXITS), ".PP", *_prose(EXITS_AFTER)]
    lines += [".SH ENVIRONMENT", *_terms(ENVIRONMENT), *_terms(_variables())]
    lines += [".SH FILES", *_terms(FILES)]
    lines += [".SH EXAMPLES", *list(_epilog(root.epilog))[1:]]
    return "\n".join(lines) + "\n"


def _variables() -> Iterator[tuple[str, str]]:
    for setting in settings.SETTINGS:
        yield setting.variable, f"As --{setting.key}: {setting.allowed()}."


def _synopsis(command: Command) -> str:
    words = [f"\\fB{_text(f'dpwatch {command.name}'.strip())}\\fR", r"[\fIOPTION\fR]..."]
    for place in command.places:
        value = rf"\fI{_text(place.value)}\fR{'...' if place.many else ''}"
        words.append(value if place.required else f"[{value}]")
    return " ".join(words)


def _command(command: Command, root: Command) -> Iterator[str]:
    yield f'.SS "{_text(command.name)}"'
    yield from _prose(command.description)
    shared = [each for each in command.options if each in root.options]
    own = [each for each in command.options if each not in shared]
    yield from _arguments([*command.places, *own])
    flags = ", ".join(f"`{flag}`" for each in shared for flag in each.flags)
    yield from (".PP", *_prose(f"Also {flags}, as above."))
    yield from _epilog(command.epilog)


def _arguments(arguments: Iterable[Argument]) -> Iterator[str]:
    for argument in arguments:
        names = ", ".join(rf"\fB{_text(flag)}\fR" for flag in argument.flags)
        value = rf"\fI{_text(argument.value)}\fR" if argument.value else ""
        if argument.flags and not argument.required and value:
            value = f"[{value}]"
        yield from (".TP", f"{names} {value}".strip(), *_prose(argument.help))


def _terms(terms: Iterable[Sequence[str]]) -> Iterator[str]:
    for name, text in terms:
        yield from (".TP", rf"\fB{_text(name)}\fR", *_prose(text))


def _paragraphs(text: str) -> Iterator[str]:
    for index, paragraph in enumerate(text.strip().split("\n\n")):
        if index:
            yield ".PP"
        yield from _prose(paragraph)


def _epilog(text: str) -> Iterator[str]:
    """An epilog: blocks under a heading verbatim, the rest as prose."""
    for block in text.strip().split("\n\n"):
        head, _, rest = block.partition("\n")
        if head.endswith(":") or block.startswith(" "):
            body = rest if head.endswith(":") else block
            if head.endswith(":") and head != "examples:":
                yield from (".PP", _text(head))
            yield from (".PP", ".nf", *(_text(line) for line in body.splitlines()), ".fi")
        elif block:
            yield from (".PP", *_prose(block))


def _prose(text: str) -> list[str]:
    """Prose, wrapped for readers of the source; man fills it again."""
    lines = wrap(_text(text), WIDTH, break_long_words=False, break_on_hyphens=False)
    return [rf"\&{line}" if line.startswith(".") else line for line in lines]


def _text(text: str) -> str:
    """Text escaped for roff: literal hyphens, and no line mistaken for a request."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    text = text.replace("`", r"\(ga").replace("'", r"\(aq").replace("~", r"\(ti")
    return rf"\&{text}" if text.startswith(".") else text


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def date_of(text: str) -> str:
    """The date in a page, empty if there is none."""
    found = re.search(r"^\.TH \S+ 1 (\S+)", text, re.MULTILINE)
    return found[1] if found else ""


def main() -> None:
    """Writes the page if it differs from the file; otherwise keeps the file and its date."""
    path = Path(sys.argv[1])
    root = command_line(build_parser())
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if page(root, date_of(old)) != old:
        path.write_text(page(root, datetime.date.today().isoformat()), encoding="utf-8")


if __name__ == "__main__":
    main()
