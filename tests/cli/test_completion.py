"""`dpwatch completion`: its scripts, asked by the shells themselves."""

import os
import pty
import shutil
import subprocess

import pytest

from dpwatch.cli import main
from dpwatch.cli.command_line import command_line
from dpwatch.cli.completion import SHELLS
from dpwatch.cli.parser import build_parser
from dpwatch.trainer.registry import known_names

BASH = r"""
source "$SCRIPT"
compopt() { [[ $* == '-o default' ]] && COMPREPLY=($(compgen -f -- "$word")); }
LINE=${LINE//=/ = }  # as readline does it
IFS=' ' read -r -a COMP_WORDS <<< "$LINE"
[[ $LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_dpwatch
printf '%s\n' "${COMPREPLY[@]}"
"""

ZSH = r"""
autoload -Uz compinit && compinit -D -u
source "$SCRIPT"
LISTMAX=1000000
compadd() {
  if (( ${@[(I)-[OAD]]} )); then builtin compadd "$@"; return; fi
  local -a found
  builtin compadd -O found "$@"
  print -rl -- $found >> $FOUND
  builtin compadd "$@"
}
zle-line-init() { BUFFER=$LINE; CURSOR=$#BUFFER; zle list-choices; exit }
zle -N zle-line-init
"""


def bash(line, script, folder):
    return _output(["bash", "--norc", "-c", BASH], line, script, folder)


def fish(line, script, folder):
    told = _output(
        ["fish", "--no-config", "-c", "source $SCRIPT; complete -C $LINE"], line, script, folder
    )
    return [each.partition("\t")[0] for each in told]


def zsh(line, script, folder):
    """Has a line editor of its own, which lists what there is for the line, and ends."""
    (folder / ".zshrc").write_text(ZSH)
    found = folder / ".found"
    found.write_text("")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-d", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=folder,
        env=_environment(line, script) | {"ZDOTDIR": str(folder), "FOUND": str(found)},
    ) as process:
        os.close(theirs)
        try:
            while os.read(ours, 4096):
                pass
        except OSError:  # it has ended
            pass
        finally:
            process.kill()
            os.close(ours)
    return found.read_text().splitlines()


def _output(words, line, script, folder):
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=_environment(line, script),
    )
    assert not done.stderr
    return done.stdout.splitlines()


def _environment(line, script):
    return {**os.environ, "LINE": line, "SCRIPT": str(script), "TERM": "dumb"}


@pytest.fixture(params=[bash, zsh, fish], ids=lambda shell: shell.__name__)
def completed(request, tmp_path, capsys):
    """What a shell makes of the last word of a line, in a folder with files."""
    name = request.param.__name__
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}: apt-get install {name}")
    assert main(["completion", name]) == 0
    script = tmp_path / f"dpwatch.{name}"
    script.write_text(capsys.readouterr().out)
    folder = tmp_path / "work"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "check.toml").touch()
    (folder / "train.py").touch()

    def complete(line):
        last = line.rpartition(" ")[2]
        found = {each.rstrip("/") for each in request.param(line, script, folder) if each}
        # Of some words the shells complete a part, others the whole.
        for before in (last.rpartition(",")[0] + ",", last.partition("=")[0] + "="):
            found = {each.removeprefix(before) for each in found}
        return found

    return complete


COMMANDS = {"demo", "run", "ssh", "keys", "stacks", "doctor", "config", "completion"}
SCENARIOS = {"oom", "straggler", "gil", "overlap", "reshard"}
FILES = {"checkpoints", "check.toml", "train.py"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dpwatch ", COMMANDS),
        ("dpwatch co", {"config", "completion"}),
        ("dpwatch --theme dark de", {"demo"}),
        ("dpwatch --theme demo sta", {"stacks"}),
        ("dpwatch --last 3 --on", {"--once"}),
        ("dpwatch --onc", {"--once"}),
        ("dpwatch --theme ", {"dark", "light", "contrast", "safe"}),
        ("dpwatch --theme=s", {"safe"}),
        ("dpwatch --view ti", {"timeline"}),
        ("dpwatch --port ", set()),
        ("dpwatch demo --scenario=", SCENARIOS),
        ("dpwatch demo --strategy zero1,hs", {"hsdp"}),
        ("dpwatch demo --strategy ", {"all", *known_names()}),
        ("dpwatch demo --config ", FILES),
        ("dpwatch demo --save ch", {"checkpoints"}),
        ("dpwatch demo --no-as", {"--no-ascii"}),
        ("dpwatch run --js", {"--json"}),
        ("dpwatch run --json ch", {"checkpoints", "check.toml"}),
        ("dpwatch run --fail-on info,des", {"desync"}),
        ("dpwatch run --memory ", {"passive", "exact"}),
        ("dpwatch run -- cat tr", {"train.py"}),
        ("dpwatch run --quiet cat ch", {"checkpoints", "check.toml"}),
        ("dpwatch run -- cat --memory ", FILES),
        ("dpwatch run cat --compare-with", set()),
        ("dpwatch ssh --remote-dir ch", set()),
        ("dpwatch ssh node1 --onc", {"--once"}),
        ("dpwatch stacks --", {"--help", "--json"}),
        ("dpwatch completion ", set(SHELLS)),
    ],
)
def test_a_line_is_completed(completed, line, expected):
    assert completed(line) == expected


def test_a_value_with_a_space_is_one_word(completed):
    assert completed("dpwatch --sort st") in ({"step time"}, {"step\\ time"})


def test_a_command_of_ones_own_is_completed(completed):
    assert "torchrun-of-mine" not in completed("dpwatch run -- dpwatch-no-such")
    assert "printenv" in completed("dpwatch run -- printe")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_word_of_the_command_line_is_in_every_script(shell, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    for command in command_line(build_parser()):
        words = [flag for option in command.options for flag in option.flags]
        words += [word for option in command.options for word in option.values.words]
        for word in (command.name, *words):
            assert (word.lstrip("-") if shell == "fish" else word) in script


def test_an_unknown_shell_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(name in told for name in ("tcsh", *SHELLS))


def test_the_help_says_how_each_is_installed(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    told = capsys.readouterr().out
    for shell in SHELLS:
        assert f"dpwatch completion {shell} > ~/" in told


@pytest.mark.parametrize(
    "option", ["--json", "--config", "--save", "--strategy", "--view", "--ssh"]
)
def test_values_are_told_of_the_options_they_belong_to(option):
    expected = {"--json": "files", "--config": "files", "--save": "folders", "--strategy": "list",
                "--view": "words", "--ssh": "unknown"}  # fmt: skip
    kinds = {
        each.values.kind
        for command in command_line(build_parser())
        for each in command.options
        if option in each.flags and each.value
    }
    assert kinds == {expected[option]}
