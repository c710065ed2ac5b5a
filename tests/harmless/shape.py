"""A shape of script: what its file's docstring says of how it is run.

The first line says what a script of this kind could notice. After a blank line may follow

    variants: a | b c      one row each, with these arguments
    exit: 0 | 1            their exit codes without a probe, or that of all; else 0
    command: {python} -W error {script} {arguments}
    also: watch            besides `dpwatch run`, the first variant also with `dpwatch.watch()`
    needs: program g++ for inductor, module rich
    order: any             lines may come in any order: several processes print
    stderr: ignored        why it is not compared
    noticed: why           this differs, and docs/no-harm.md says so
    stdin: text            the rest of the docstring is its standard input
"""

from __future__ import annotations

import ast
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ZOO = Path(__file__).with_name("zoo")
_NOT_SHAPES = {"training"}
_DEFAULT_COMMAND = "{python} {script} {arguments}"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One row of the zoo.

    Attributes:
        name: `double_backward`, `compile_first/eager-2`, with `/watch` behind if `watched`.
        script: Its file.
        arguments: It is started with.
        about: What a script of this kind could notice.
        watched: By `dpwatch.watch()` and not by `dpwatch run`.
        exit_code: Without a probe.
        facts: The docstring's other lines.
    """

    name: str
    script: Path
    arguments: tuple[str, ...]
    about: str
    watched: bool
    exit_code: int
    facts: dict[str, str]

    @property
    def any_order(self) -> bool:
        """Lines are compared without their order."""
        return self.facts.get("order") == "any"

    @property
    def ignores_stderr(self) -> bool:
        """Standard error is not compared."""
        return "stderr" in self.facts

    @property
    def noticed(self) -> str:
        """Why it may differ, "" if it may not."""
        return self.facts.get("noticed", "")

    @property
    def stdin(self) -> str:
        """What it is given on standard input."""
        return self.facts.get("stdin", "")

    def command(self, port: int, *launcher: str) -> list[str]:
        """The words that start it.

        Args:
            port: For ranks to meet at.
            launcher: Stands between Python and the script.
        """
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            str(port),
        ]
        parts = {
            "{python}": [sys.executable],
            "{torchrun}": [sys.executable, *torchrun],
            "{script}": [*launcher, str(self.script)],
            "{arguments}": list(self.arguments),
        }
        words = self.facts.get("command", _DEFAULT_COMMAND).split()
        return [each for word in words for each in parts.get(word, [word])]

    def missing(self) -> str:
        """What it needs and this machine lacks, "" if nothing."""
        for need in filter(None, self.facts.get("needs", "").split(", ")):
            kind, what, *condition = need.split()
            if condition and condition[-1] not in self.arguments:
                continue
            if not (shutil.which(what) if kind == "program" else _importable(what)):
                return f"no {kind} {what}"
        return ""


def all_shapes() -> list[Shape]:
    """Every row, by name."""
    files = sorted(path for path in ZOO.glob("*.py") if path.stem not in _NOT_SHAPES)
    return [shape for path in files for shape in _shapes(path)]


def _shapes(path: Path) -> Iterator[Shape]:
    about, facts = _parsed(ast.get_docstring(ast.parse(path.read_text())) or "")
    codes = facts.get("exit", "0").split("|")
    for number, variant in enumerate(facts.get("variants", "").split("|")):
        arguments = tuple(variant.split())
        name = "/".join(filter(None, (path.stem, "-".join(arguments))))
        both = facts.get("also") == "watch" and not number
        for watched in (False, True) if both else (False,):
            yield Shape(
                name=f"{name}/watch" if watched else name,
                script=path,
                arguments=arguments,
                about=about,
                watched=watched,
                exit_code=int(codes[min(number, len(codes) - 1)]),
                facts=facts,
            )


def _parsed(docstring: str) -> tuple[str, dict[str, str]]:
    about, _, rest = docstring.partition("\n\n")
    head, stdin, text = f"\n{rest}".partition("\nstdin: ")
    facts = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    if stdin:
        first, _, more = text.partition("\n")
        facts["stdin"] = f"{first}\n{textwrap.dedent(more)}\n"
    return about, facts


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
