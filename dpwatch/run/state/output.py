"""The last lines printed by each rank, within one memory budget per run."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dpwatch.run.model.snapshot import Printed, RankOutput
from dpwatch.wire.messages import Line, Output

LINES = 200
"""Lines kept per rank."""

RUN_BYTES = 2 << 20
"""Bytes kept for all ranks together, in equal shares."""

LINE_BYTES = 64
"""Overhead of a line in addition to its text."""

LINE_CHARS = 400
"""Characters kept of a line, however long the received one is."""


class RankLines(msgspec.Struct):
    """One rank's last lines, oldest first.

    Attributes:
        nbytes: Size of the lines, in bytes.
        left_out: Lines that the sender skipped.
        let_go: Lines received and dropped since, to stay within limits.
        open: By stream, the line that is not terminated yet.
    """

    lines: list[Printed] = []
    nbytes: int = 0
    left_out: int = 0
    let_go: int = 0
    open: dict[str, Printed] = {}

    @property
    def received(self) -> int:
        """Number of lines received, kept or not."""
        return len(self.lines) + self.let_go

    def add(self, record: Output) -> None:
        """Adds a record's lines."""
        stream = "err" if record.stream == "err" else "out"
        self.left_out += max(record.left_out, 0)
        for line in record.lines:
            printed = _printed(line, stream)
            self.lines.append(printed)
            self.nbytes += _size(printed)
        if record.open is None:
            self.open.pop(stream, None)
        else:
            self.open[stream] = _printed(record.open, stream)

    def fit(self, share: int) -> None:
        """Drops the oldest lines that exceed the limits; `share` is in bytes."""
        over = max(len(self.lines) - LINES, 0)
        self.nbytes -= sum(map(_size, self.lines[:over]))
        while self.nbytes > share and over < len(self.lines):
            self.nbytes -= _size(self.lines[over])
            over += 1
        del self.lines[:over]
        self.let_go += over

    def freeze(self, rank: int) -> RankOutput:
        """Immutable copy for a snapshot."""
        still_open = tuple(self.open.values())
        return RankOutput(rank, (*self.lines, *still_open), self.left_out, self.let_go)


class RunOutput(msgspec.Struct):
    """Lines of all ranks; kept when a rank restarts."""

    ranks: dict[int, RankLines] = {}
    share: int = RUN_BYTES

    def add(self, rank: int, record: Output, ranks: int) -> None:
        """Adds a rank's record; `ranks` is the number of ranks in the run."""
        if rank not in self.ranks:
            self.ranks[rank] = RankLines()
            self.ranks = dict(sorted(self.ranks.items()))
        share = RUN_BYTES // max(ranks, len(self.ranks))
        self.ranks[rank].add(record)
        if share < self.share:
            for lines in self.ranks.values():
                lines.fit(share)
        self.share = share
        self.ranks[rank].fit(share)

    def merge(self, other: RunOutput, numbers: Iterable[int], ranks: int) -> None:
        """Adds another hub's lines of these ranks; where both have a rank, the longer one wins."""
        share = RUN_BYTES // max(ranks, 1)
        for number in numbers:
            theirs = other.ranks.get(number)
            known = self.ranks.get(number)
            if theirs is not None and (known is None or known.received <= theirs.received):
                self.ranks[number] = theirs
        self.ranks = dict(sorted(self.ranks.items()))
        self.share = min(self.share, share)
        for lines in self.ranks.values():
            lines.fit(self.share)

    def freeze(self) -> tuple[RankOutput, ...]:
        """Immutable copy for a snapshot, in order of ranks."""
        return tuple(lines.freeze(rank) for rank, lines in self.ranks.items())


def _printed(line: Line, stream: str) -> Printed:
    return Printed(line.wall_ns, stream, line.text[:LINE_CHARS])


def _size(printed: Printed) -> int:
    return LINE_BYTES + len(printed.text.encode())
