"""The report of `dpwatch run --compare-without`: a line per comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpwatch.cli.compare_lines import Comparison, compare
from dpwatch.text_safety import printable

NAMES = ("without-1", "without-2", "with")

MOST_BYTES = 32 << 20
"""How much of a stream is read; nobody reads more."""

OWN = "dpwatch: "
"""How dpwatch's own lines on stderr start."""

MOST_SHOWN = 3
WIDTH = 100


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        name: One of `NAMES`.
        code: Exit code, 128 + n if signal n ended it.
        seconds: Wall time.
        out: Its standard output, as a file.
        err: Its standard error.
    """

    name: str
    code: int
    seconds: float
    out: Path
    err: Path


def report(
    outcomes: Sequence[Outcome], seen: Sequence[Mapping[str, Any]]
) -> tuple[list[str], bool]:
    """Compares three runs.

    Args:
        outcomes: In the order of `NAMES`.
        seen: The runs that dpwatch saw, as in its summary.

    Returns:
        Lines to print, and whether everything that could be judged agrees.
    """
    first, second, third = outcomes
    codes, codes_agree = _exit_codes(first.code, second.code, third.code)
    lines = [f"exit code  {codes}"]
    out = compare(*(_lines(each.out) for each in outcomes))
    err = compare(
        _lines(first.err),
        _lines(second.err),
        [line for line in _lines(third.err) if not line.startswith(OWN)],
    )
    for name, told in (("stdout", out), ("stderr", err)):
        lines += _stream(name, told)
    lines.append(f"losses     {_losses(out, err)}")
    lines.append(
        f"time       {first.seconds:.1f} s and {second.seconds:.1f} s without, "
        f"{third.seconds:.1f} s with dpwatch"
    )
    lines += _dpwatch(seen, [line for line in _lines(third.err) if line.startswith(OWN)])
    same = codes_agree and not out.differences and not err.differences
    return [*lines, _verdict(same, out, err, seen)], same


def _exit_codes(first: int, second: int, third: int) -> tuple[str, bool]:
    if first != second:
        return f"{first} and {second} without dpwatch, so not judged; {third} with it", True
    if first != third:
        return f"DIFFERS: {first} without dpwatch, {third} with it", False
    return f"{first}, the same", True


def _stream(name: str, told: Comparison) -> list[str]:
    said = f"{told.lines} lines, "
    said += f"DIFFERS in {len(told.differences)}" if told.differences else "the same"
    if told.reordered:
        said += " in another order"
    if told.partly:
        said += f"; {told.partly} have numbers that differ without dpwatch too"
    if told.unjudged:
        said += f"; {told.unjudged} differ without dpwatch too and are not judged"
    lines = [f"{name}     {said}"]
    for without, with_it in told.differences[:MOST_SHOWN]:
        lines.append(f"  without  {_shown(without)}")
        lines.append(f"  with     {_shown(with_it)}")
    return lines


def _shown(line: str | None) -> str:
    if line is None:
        return "(no such line)"
    text = printable(line)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _losses(out: Comparison, err: Comparison) -> str:
    told = [out, err]
    agree, unjudged = (
        sum(getattr(each, n) for each in told) for n in ("losses", "unjudged_losses")
    )
    said = []
    if agree:
        said.append(f"{agree} numbers on lines with a loss agree to the last digit")
    if unjudged:
        said.append(f"{unjudged} such lines differ without dpwatch too")
    return "; ".join(said) or "no line with a loss could be compared"


def _dpwatch(seen: Sequence[Mapping[str, Any]], own: Sequence[str]) -> list[str]:
    """What dpwatch saw of its run: what it doesn't see it can't change."""
    told = []
    for run in seen:
        first, last = run["loss"]["first"], run["loss"]["last"]
        loss = "" if first is None or last is None else f", loss {first:.6g} → {last:.6g}"
        told.append(f"dpwatch    saw {run['steps']} steps of {len(run['ranks'])} ranks{loss}")
    return [*(told or ["dpwatch    saw no training process"]), *map(printable, own)]


def _verdict(
    same: bool, out: Comparison, err: Comparison, seen: Sequence[Mapping[str, Any]]
) -> str:
    if not same:
        return "The command behaves differently with dpwatch."
    if out.lines and out.unjudged >= out.lines:
        return (
            "Nothing that could be judged differs, but the command prints something else each "
            "time. Does it go on from a checkpoint, or lack a seed?"
        )
    told = "The command behaves the same with dpwatch and without."
    return told if seen else f"{told} But dpwatch saw no training in it."


def _lines(path: Path) -> list[str]:
    """A stream's lines; of a progress bar, what remains on the screen."""
    with path.open("rb") as file:
        text = file.read(MOST_BYTES).decode(errors="replace")
    whole = text.removesuffix("\n").split("\n") if text else []
    return [line.rstrip("\r").rpartition("\r")[2] for line in whole]
