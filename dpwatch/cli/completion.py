"""`dpwatch completion SHELL`: a completion script for the whole command line.

The scripts are generated from the parser, by a module of `shells` each, and start no Python when
Tab is pressed. After `dpwatch run --` they use the shell's completion of the user's command.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module

from dpwatch.argument_parser import Commands
from dpwatch.cli.errors import FINE

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = """\
to try it in this shell:
  source <(dpwatch completion bash)          bash; the same with zsh
  dpwatch completion fish | source           fish

to keep it (print it again after an upgrade):
  bash   dpwatch completion bash > ~/.dpwatch.bash && echo '. ~/.dpwatch.bash' >> ~/.bashrc
  zsh    dpwatch completion zsh > ~/.dpwatch.zsh && echo '. ~/.dpwatch.zsh' >> ~/.zshrc
  fish   dpwatch completion fish > ~/.config/fish/completions/dpwatch.fish

In ~/.zshrc it must come after `autoload -U compinit && compinit`. After `dpwatch run --`, bash
completes commands with the package bash-completion, and only files without it.
"""


def add(commands: Commands, whole: argparse.ArgumentParser) -> None:
    """Adds the command; `whole` is the command line to complete."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for bash, zsh or fish",
        description="Prints a shell's completion script for dpwatch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    parser.set_defaults(run=partial(run, whole))


def run(whole: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Prints the script."""
    from dpwatch.cli.command_line import command_line

    shell = import_module(f"dpwatch.cli.shells.{options.shell}")
    print(shell.script(command_line(whole)), end="")
    return FINE
