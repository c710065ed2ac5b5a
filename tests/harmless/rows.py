"""What is reported: a row for each thing that was compared, and how rows are printed."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SAME = "same"
DIFFERS = "DIFFERS"
VARIES = "varies"
"""Two runs without the probe differ from each other, so nothing can be said."""
NOT_RUN = "not run"
NOTICED = "noticed"
"""It differs, as docs/no-harm.md says."""
BROKEN = "BROKEN"
"""It does not do what it should without the probe either, so nothing is shown."""

_ORDER = (DIFFERS, BROKEN, VARIES, NOTICED, NOT_RUN, SAME)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        name: `part/what/…`, as `python -m tests.harmless` takes it.
        verdict: One of this module's constants.
        note: In a few words, what was compared, or why it was not.
        detail: Lines that say what differs.
    """

    name: str
    verdict: str
    note: str = ""
    detail: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What reproduces this row."""
        python = os.path.relpath(sys.executable)
        return f"{python} -m tests.harmless {self.name}"


@dataclass
class Report:
    """All rows, printed as they come.

    Attributes:
        verbose: Rows that are the same are printed too.
        rows: So far.
    """

    verbose: bool = False
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Takes a row, and prints it unless it is one of thousands that are the same."""
        self.rows.append(row)
        if self.verbose or row.verdict != SAME or not row.name.startswith("ops/"):
            print(f"{row.verdict:8} {row.name:44} {row.note}".rstrip(), flush=True)
        for line in row.detail:
            print(f"         {line}", flush=True)
        if row.verdict in (DIFFERS, BROKEN):
            print(f"         reproduce: {row.command}", flush=True)

    def print_counts(self) -> None:
        """A line for each part: how many rows of each verdict."""
        parts = sorted({row.name.partition("/")[0] for row in self.rows})
        print()
        for part in parts:
            counts = Counter(r.verdict for r in self.rows if r.name.partition("/")[0] == part)
            said = ", ".join(
                f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict]
            )
            print(f"{part:6} {counts.total():5} rows: {said}")

    @property
    def failed(self) -> bool:
        """Whether any row differs, or shows nothing."""
        return any(row.verdict in (DIFFERS, BROKEN) for row in self.rows)

    def write(self, path: Path) -> None:
        """Writes all rows as JSON."""
        path.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")


def wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether a row is meant: its name, or a part of its path, was given; or nothing was."""
    return not patterns or any(name == each or name.startswith(f"{each}/") for each in patterns)


def shortened(lines: Iterable[str], most: int, width: int = 160) -> tuple[str, ...]:
    """The first lines, each cut to a width, and how many more there are."""
    every = list(lines)
    told = [line if len(line) <= width else f"{line[: width - 1]}…" for line in every[:most]]
    if len(every) > most:
        told.append(f"… and {len(every) - most} more lines")
    return tuple(told)
