"""Completion for zsh, as a function of its own completion system."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from dpwatch.cli.command_line import Argument, Command

SCRIPT = r"""#compdef dpwatch
# Completion of dpwatch for zsh, as `dpwatch completion zsh` prints it.

_dpwatch() {
    local curcontext=$curcontext state line
    local -A opt_args
    _arguments -C \
        @MAIN@ \
        '(-): :->command' \
        '(-)*:: :->rest' && return
    case $state in
        command)
            local -a commands=(
                @COMMANDS@
            )
            _describe -t commands command commands
            ;;
        rest)
            curcontext=${curcontext%:*}-$words[1]:
            case $words[1] in
@CASES@
            esac
            ;;
    esac
}

if [[ $funcstack[1] == _dpwatch ]]; then
    _dpwatch "$@"
else
    compdef _dpwatch dpwatch
fi
"""


def script(root: Command) -> str:
    """The script."""
    commands = [f"{each.name}:{each.help}" for each in root.commands]
    return (
        SCRIPT.replace("@MAIN@", _lines(8, _options(root), " \\"))
        .replace("@COMMANDS@", _lines(16, [quote(each) for each in commands]))
        .replace("@CASES@", "\n".join(_case(command) for command in root.commands))
    )


def _case(command: Command) -> str:
    arguments = [*_options(command), *(s for place in command.places for s in _place(place))]
    lines = _lines(20, ["_arguments -S", *arguments], " \\")
    return f"                {command.name})\n                    {lines}\n                    ;;"


def _lines(indent: int, texts: Sequence[str], ending: str = "") -> str:
    return f"{ending}\n{' ' * indent}".join(texts)


def _options(command: Command) -> list[str]:
    """Specs for `_arguments`: each option only once, by only one of its names."""
    specs = []
    for option in command.options:
        others = f"({' '.join(option.flags)})" if len(option.flags) > 1 else ""
        for flag in option.flags:
            spec = f"{others}{flag}{'=' if option.value else ''}[{_escaped(option.help, '[]')}]"
            if option.value:
                spec += _value(option) if option.required else f":{_value(option)}"
            specs.append(quote(spec))
    return specs


def _value(argument: Argument) -> str:
    return f":{_escaped(argument.value, ':')}:{_action(argument)}"


def _place(place: Argument) -> list[str]:
    if place.values.kind == "command":
        return [quote("(-):command:_command_names -e"), quote("(-)*::argument:_normal")]
    return [quote(f"{'*' if place.many else ''}{_value(place)}")]


def _action(argument: Argument) -> str:
    words = " ".join(quote(word) for word in argument.values.words)
    return {
        "words": f"({words})",
        "list": f"_values -s , {quote(argument.value)} {words}",
        "files": "_files",
        "folders": "_files -/",
        "hosts": "_hosts",
    }.get(argument.values.kind, "")


def _escaped(text: str, signs: str) -> str:
    return "".join(f"\\{each}" if each in signs else each for each in text)
