"""Compares the output of three runs of a command: twice without dpwatch, once with it.

Two runs of the same command seldom print the same: times, process ids and the order of ranks' lines
differ. So the two runs without dpwatch tell what can be judged. What is equal in both must be equal
in the third; what differs between them is counted and not judged. This holds for lines and, within
lines such as `step 3 pid 71 loss 0.532`, for their numbers.

Three things are never judged, since two runs may agree in them by chance: times and rates
(`12:00:01`, `3.2 s`, `18 it/s`), the order of lines, and what a progress bar overwrites.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

_TIME = re.compile(
    r"(?:\d{4}-\d\d-\d\d[T ])?\b\d+(?::\d\d)+(?:[.,]\d+)?"  # a clock's
    r"|\d[\d.,]*(?:e[-+]?\d+)? ?(?:ns|[uµ]s|ms|s|secs?|seconds?|mins|minutes?|hours?)\b"
    r"|\d[\d.,]*(?:e[-+]?\d+)? ?[A-Za-z]*/ ?(?:s|sec|second)\b"  # a rate
    r"|(?i:(?<=time )|(?<=time=)|(?<=time: )|(?<=took )|(?<=elapsed )|(?<=elapsed: ))\d[\d.,]*"
)
_NUMBER = re.compile(
    r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b"  # a hash
    r"|[-+]?(?:0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][-+]?\d+)?"
    r"|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
)
_RANK = re.compile(r"(?i)\brank\W{0,3}(\d+)")
_LOSS = re.compile(r"(?i)loss|perplexity")


class _Line(NamedTuple):
    """A line as printed, its place in its run, and what may be judged of it."""

    place: int
    text: str
    judged: str


_Group = tuple[list[_Line], list[_Line], list[_Line]]


@dataclass
class Comparison:
    """The result for one stream.

    Attributes:
        lines: Lines that the first run printed.
        unjudged: Lines that also differ without dpwatch.
        partly: Lines some of whose numbers do; the rest was compared.
        losses: Numbers compared, and equal, in lines that mention a loss.
        unjudged_losses: Such lines whose numbers also differ without dpwatch.
        reordered: All lines are the same, but in another order than in both runs without dpwatch.
        lost: Lines that are missing or different with dpwatch.
        new: Lines that only exist with dpwatch.
    """

    lines: int = 0
    unjudged: int = 0
    partly: int = 0
    losses: int = 0
    unjudged_losses: int = 0
    reordered: bool = False
    lost: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    @property
    def differences(self) -> list[tuple[str | None, str | None]]:
        """Pairs of a line without and with dpwatch; None where it is missing."""
        return list(zip_longest(self.lost, self.new))


def compare(first: Sequence[str], second: Sequence[str], third: Sequence[str]) -> Comparison:
    """Compares a stream's lines.

    Args:
        first: Without dpwatch.
        second: Without dpwatch, again.
        third: With dpwatch.
    """
    told = Comparison(lines=len(first))
    groups: dict[str, _Group] = {}
    lost: list[_Line] = []
    new: list[_Line] = []
    for number, run in enumerate((first, second, third)):
        for place, text in enumerate(run):
            line = _Line(place, text, _TIME.sub("…", text))
            groups.setdefault(_pattern(line.judged), ([], [], []))[number].append(line)
    for group in groups.values():
        missing, extra = _compare_group(told, group)
        lost += missing
        new += extra
    told.lost, told.new = ([line.text for line in sorted(lines)] for lines in (lost, new))
    told.reordered = not told.differences and list(first) == list(second) != list(third)
    return told


def _pattern(line: str) -> str:
    """The line with `#` for each number, and the ranks it names: ranks print in varying order."""
    ranks = " ".join(match[1] for match in _RANK.finditer(line))
    return f"{ranks}|{_NUMBER.sub('#', line)}"


def _compare_group(told: Comparison, group: _Group) -> tuple[list[_Line], list[_Line]]:
    """Compares lines that are equal except for numbers, ignoring numbers that vary anyway.

    Returns:
        Lines that are missing with dpwatch, and lines that only exist with it.
    """
    columns = [_columns(run) for run in group[:2]]
    stable = [sorted(a) == sorted(b) for a, b in zip_longest(*columns, fillvalue=[])]
    first, second, third = ([_kept(line.judged, stable) for line in run] for run in group)
    if sorted(first) != sorted(second):
        told.unjudged += max(len(run) for run in group)
        told.unjudged_losses += sum(bool(_LOSS.search(line)) for line in first)
        return [], []
    if not all(stable):
        told.partly += len(first)
    missing, extra = Counter(first), Counter(third)
    both = missing & extra
    told.losses += sum(_numbers_of_loss(line) * count for line, count in both.items())
    return _left_over(group[0], first, missing - both), _left_over(group[2], third, extra - both)


def _columns(lines: Sequence[_Line]) -> list[list[str]]:
    """The lines' first numbers, their second numbers, and so on."""
    rows = [_NUMBER.findall(line.judged) for line in lines]
    return [list(column) for column in zip(*rows, strict=True)]


def _kept(line: str, stable: Sequence[bool]) -> str:
    """The line with `…` for numbers that can't be judged."""
    if all(stable):
        return line
    judged = iter(stable)
    return _NUMBER.sub(lambda match: match[0] if next(judged) else "…", line)


def _numbers_of_loss(line: str) -> int:
    return len(_NUMBER.findall(line)) if _LOSS.search(line) else 0


def _left_over(lines: Sequence[_Line], kept: Sequence[str], left: Counter[str]) -> list[_Line]:
    """The lines missing in the other run."""
    found = []
    for line, judged in zip(lines, kept, strict=True):
        if left[judged] > 0:
            left[judged] -= 1
            found.append(line)
    return found
