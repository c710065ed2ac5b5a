"""Completion for fish 3 and later."""

from __future__ import annotations

from dpwatch.cli.command_line import Argument, Command, Values

SCRIPT = r"""# Completion of dpwatch for fish, as `dpwatch completion fish` prints it.

# Prints the command that is written, a line; then, for `@RUN@`, where the user's own begins.
function __dpwatch_state
    set -l words (commandline -opc)
    set -l command ''
    set -l option ''
    for index in (seq 2 (count $words))
        set -l word $words[$index]
        if test -n "$option"; and not string match -q -- '-*' $word
            set option ''
            continue
        end
        set option ''
        switch "$command $word"
            case '@RUN@ --'
                printf '%s\n' $command (math $index + 1)
                return
            case @VALUED@
                set option $word
            case '* -*'
            case '@RUN@ *'
                printf '%s\n' $command $index
                return
            case '*'
                test -n "$command"; or set command $word
        end
    end
    echo $command
    if test "$command" = @RUN@; and test -z "$option"
        and not string match -q -- '-*' (commandline -ct)
        math (count $words) + 1
    end
end

# Whether an option or argument of this command can stand here.
function __dpwatch_at
    set -l state (__dpwatch_state)
    test "$state[1]" = "$argv[1]"; and not set -q state[2]
end

# Whether the user's own command is being written.
function __dpwatch_at_own
    set -l state (__dpwatch_state)
    set -q state[2]
end

# What completes that.
function __dpwatch_own
    set -l state (__dpwatch_state)
    set -l words (commandline -opc)
    set -e words[1..(math $state[2] - 1)]
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end

# Its arguments after those that the word has already, with commas between.
function __dpwatch_list
    set -l before (commandline -ct | string replace -r -- '^--[^=]*=' '' | string match -r '.*,')
    printf '%s\n' "$before"$argv
end

complete -c dpwatch -e
complete -c dpwatch -f
complete -c dpwatch -n __dpwatch_at_own -x -a '(__dpwatch_own)'
"""


def script(root: Command) -> str:
    """The script."""
    valued = [
        _quoted(f"{command.name} {flag}")
        for command in root
        for option in command.options
        for flag in option.flags
        if option.value
    ]
    lines = [line for command in root for line in _lines(command)]
    head = SCRIPT.replace("@RUN@", root.runner).replace("@VALUED@", " ".join(valued))
    return head + "\n".join(lines) + "\n"


def _lines(command: Command) -> list[str]:
    here = f"complete -c dpwatch -n {_quoted(f'__dpwatch_at {_quoted(command.name)}')}"
    lines = [f"{here} -a {each.name} -d {_quoted(each.help)}" for each in command.commands]
    for option in command.options:
        names = " ".join(
            f"-l {flag[2:]}" if flag[:2] == "--" else f"-s {flag[1:]}" for flag in option.flags
        )
        lines.append(f"{here} {names}{_option_value(option)} -d {_quoted(option.help)}")
    completed = (_completed(place.values) for place in command.places)
    return [*lines, *(f"{here} {each}" for each in completed if each)]


def _option_value(option: Argument) -> str:
    """The value's completion; nothing for an optional value, which fish doesn't support."""
    if not option.value or not option.required:
        return ""
    return f" {_completed(option.values) or '-x'}"


def _completed(values: Values) -> str:
    words = " ".join(_quoted(word) for word in values.words)
    return {
        "words": f"-x -a {_quoted(words)}",
        "list": f"-x -a {_quoted(f'(__dpwatch_list {words})')}",
        "files": "-r -F",
        "folders": "-x -a '(__fish_complete_directories (commandline -ct))'",
        "hosts": "-x -a '(__fish_print_hostnames)'",
    }.get(values.kind, "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
