"""Completion for bash 4 and later."""

from __future__ import annotations

from shlex import join, quote

from dpwatch.cli.command_line import Command, Values

SCRIPT = r"""# Completion of dpwatch for bash, as `dpwatch completion bash` prints it.

_dpwatch() {
    local word=${COMP_WORDS[COMP_CWORD]} command='' option='' own='' at each
    COMPREPLY=()
    if [[ ${COMP_WORDS[COMP_CWORD - 1]} == *[\<\>] ]]; then
        compopt -o default
        return
    fi
    [[ $word == '=' ]] && word=''
    for ((at = 1; at < COMP_CWORD; at++)); do
        each=${COMP_WORDS[at]}
        [[ $each == '=' ]] && continue # bash makes three words of --theme=dark
        if [[ -n $option && $each != -* ]]; then
            option=''
            continue
        fi
        option=''
        case "$command $each" in
            '@RUN@ --' | '@RUN@ '[!-]*)
                [[ $each == -- ]] && ((at++))
                own=$at
                break
                ;;
            @VALUED@) option=$each ;;
            *' -'*) ;;
            *) command=${command:-$each} ;;
        esac
    done
    [[ $word == -* ]] && option=''
    if [[ -z $own$option ]]; then
        case "$command $word" in
            '@RUN@ ' | '@RUN@ '[!-]*) own=$COMP_CWORD ;;
        esac
    fi
    if [[ -n $own ]]; then
        _dpwatch_own "$own"
        return
    fi
    if [[ -n $option ]]; then
        case "$command $option" in
@VALUES@
        esac
        return
    fi
    case "$command $word" in
@WORDS@
    esac
}

# Those of its arguments that begin as the word does.
_dpwatch_offer() {
    local each typed=${word//[\\\"\']/}
    for each; do
        [[ $each == "$typed"* ]] && COMPREPLY+=("${each// /\\ }")
    done
}

# The same for the last of several with commas between.
_dpwatch_list() {
    local before=''
    [[ $word == *,* ]] && before=${word%,*},
    compopt -o nospace
    _dpwatch_offer "${@/#/$before}"
}

# The user's own command, which begins at this word.
_dpwatch_own() {
    if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$1"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif (($1 == COMP_CWORD)); then
        compopt -o default
        mapfile -t COMPREPLY < <(compgen -c -- "$word")
    else
        compopt -o default
    fi
}

complete -F _dpwatch dpwatch
"""


def script(root: Command) -> str:
    """The script."""
    cases = [
        (f"{command.name} {flag}", option)
        for command in root
        for option in command.options
        for flag in option.flags
        if option.value
    ]
    known = [(case, then) for case, option in cases if (then := _completed(option.values))]
    return (
        SCRIPT.replace("@RUN@", root.runner)
        .replace("@VALUED@", " | ".join(quote(case) for case, _ in cases))
        .replace(
            "@VALUES@", "\n".join(f"            {quote(case)}) {then} ;;" for case, then in known)
        )
        .replace("@WORDS@", "\n".join(line for command in root for line in _words(command)))
    )


def _words(command: Command) -> list[str]:
    """Completions where no option waits for its value: options, else positional arguments."""
    flags = [flag for option in command.options for flag in option.flags]
    lines = [f"        {quote(command.name + ' -')}*) _dpwatch_offer {join(flags)} ;;"]
    names = Values("words", tuple(each.name for each in command.commands))
    for values in (names, *(place.values for place in command.places)):
        if values.kind != "words" or values.words:
            then = _completed(values) or ":"
            lines.append(f"        {quote(command.name + ' ')}*) {then} ;;")
    return lines


def _completed(values: Values) -> str:
    """The shell command that completes such a value, empty if there is none."""
    return {
        "words": f"_dpwatch_offer {join(values.words)}",
        "list": f"_dpwatch_list {join(values.words)}",
        "files": "compopt -o default",
        "folders": 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word")',
        "hosts": 'mapfile -t COMPREPLY < <(compgen -A hostname -- "$word")',
    }.get(values.kind, "")
