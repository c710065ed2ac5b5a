"""The command line as data, for shell completion and the manual.

It is read from the parser, so that neither can differ from `--help`. argparse has no public way to
inspect a parser. The few private names here are the ones that every such tool uses; they have been
the same in all versions of Python 3.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["unknown", "words", "list", "files", "folders", "hosts", "command"]


@dataclass(frozen=True, slots=True)
class Values:
    """What an argument's value can be.

    Attributes:
        kind: `words` is one of these, `list` several of them separated by commas; `command` is a
            command of the user's with its arguments; `unknown` is anything else.
        words: The allowed words.
    """

    kind: Kind = "unknown"
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """An option or a positional argument.

    Attributes:
        flags: Its names, such as `-h` and `--help`; none for a positional argument.
        value: The name of its value, empty if it takes none.
        required: Whether it needs a value.
        many: Whether it takes more than one.
        values: What they can be.
        help: What it is for.
    """

    flags: tuple[str, ...]
    value: str
    required: bool
    many: bool
    values: Values
    help: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command, or the whole command line.

    Attributes:
        name: As typed, empty for the whole.
        help: What it does, in a few words.
        description: The same as a sentence.
        epilog: What follows the options in `--help`.
        options: Its options.
        places: Its positional arguments.
        commands: Its subcommands.
    """

    name: str
    help: str
    description: str
    epilog: str
    options: tuple[Argument, ...]
    places: tuple[Argument, ...]
    commands: tuple[Command, ...]

    def __iter__(self) -> Iterator[Command]:
        """Itself, then its commands."""
        yield self
        yield from self.commands

    @property
    def runner(self) -> str:
        """The subcommand that takes a command of the user's."""
        return next(
            each.name
            for each in self.commands
            if any(place.values.kind == "command" for place in each.places)
        )


def command_line(parser: argparse.ArgumentParser) -> Command:
    """The whole command line of a parser."""
    return _command("", "", parser, _named_values())


def _command(
    name: str, help: str, parser: argparse.ArgumentParser, named: Mapping[str, Values]
) -> Command:
    arguments, commands = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            commands += [_command(n, helps[n], p, named) for n, p in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            arguments.append(_argument(action, named))
    return Command(
        name=name,
        help=help,
        description=parser.description or "",
        epilog=parser.epilog or "",
        options=tuple(each for each in arguments if each.flags),
        places=tuple(each for each in arguments if not each.flags),
        commands=tuple(commands),
    )


def _argument(action: argparse.Action, named: Mapping[str, Values]) -> Argument:
    values = _values(action, named)
    value = "" if action.nargs == 0 else str(action.metavar or _choices(values) or action.dest)
    return Argument(
        flags=tuple(action.option_strings),
        value=value,
        required=action.nargs not in ("?", "*", 0),
        many=action.nargs in ("*", "+"),
        values=values,
        help=(action.help or "") % vars(action),  # as argparse does
    )


def _choices(values: Values) -> str:
    return f"{{{','.join(values.words)}}}" if values.kind == "words" else ""


def _values(action: argparse.Action, named: Mapping[str, Values]) -> Values:
    if action.nargs == argparse.REMAINDER:
        return Values("command")
    if action.choices is not None:
        return Values("words", tuple(map(str, action.choices)))
    for flag in action.option_strings:
        if flag in named:
            return named[flag]
    by_metavar: dict[object, Kind] = {"FILE": "files", "DIR": "folders", "HOST": "hosts"}
    return Values(by_metavar.get(action.metavar, "unknown"))


def _named_values() -> dict[str, Values]:
    """Options that check their values themselves, or whose metavar would mislead."""
    from dpwatch.cli.settings import SETTINGS
    from dpwatch.run.diagnose import KINDS
    from dpwatch.run.model.snapshot import SEVERITIES
    from dpwatch.trainer.registry import known_names

    counted = {f"--{each.key}": each.names for each in SETTINGS if each.names}
    return {
        **{flag: Values("words", tuple(names())) for flag, names in counted.items()},
        "--strategy": Values("list", ("all", *known_names())),
        "--fail-on": Values("list", (*SEVERITIES, *KINDS)),
        "--remote-dir": Values(),  # on another host
    }
