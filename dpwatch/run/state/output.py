"""The last lines that each rank has printed, bounded for the run as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dpwatch.run.model.snapshot import Printed, RankOutput
from dpwatch.wire.messages import Line, Output

LINES = 200
"""Lines kept of a rank …"""

RUN_BYTES = 2 << 20
"""… but of all ranks together so many bytes at most, each an equal share."""

LINE_BYTES = 64
"""What a line takes beside its text."""

LINE_CHARS = 400
"""Kept of a line, whatever a sender claims one to be."""


class RankLines(msgspec.Struct):
    """One rank's last lines, the oldest first.

    Attributes:
        nbytes: What they take.
        left_out: Lines that its sender has not told.
        let_go: Lines that were told and made room since.
        open: By stream, the line that is still being written.
    """

    lines: list[Printed] = []
    nbytes: int = 0
    left_out: int = 0
    let_go: int = 0
    open: dict[str, Printed] = {}

    @property
    def told(self) -> int:
        """How many lines have come, kept or not."""
        return len(self.lines) + self.let_go

    def take(self, record: Output) -> None:
        """Adds what a record tells."""
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
        """Lets the oldest lines go that find no room."""
        over = max(len(self.lines) - LINES, 0)
        self.nbytes -= sum(map(_size, self.lines[:over]))
        while self.nbytes > share and over < len(self.lines):
            self.nbytes -= _size(self.lines[over])
            over += 1
        del self.lines[:over]
        self.let_go += over

    def freeze(self, rank: int) -> RankOutput:
        """As a snapshot holds it."""
        still_open = tuple(self.open.values())
        return RankOutput(rank, (*self.lines, *still_open), self.left_out, self.let_go)


class RunOutput(msgspec.Struct):
    """What all ranks have printed; outlives a rank that begins anew."""

    ranks: dict[int, RankLines] = {}
    share: int = RUN_BYTES

    def take(self, rank: int, record: Output, ranks: int) -> None:
        """Takes a record in; `ranks` is how many the run has."""
        if rank not in self.ranks:
            self.ranks[rank] = RankLines()
            self.ranks = dict(sorted(self.ranks.items()))
        share = RUN_BYTES // max(ranks, len(self.ranks))
        self.ranks[rank].take(record)
        if share < self.share:
            for lines in self.ranks.values():
                lines.fit(share)
        self.share = share
        self.ranks[rank].fit(share)

    def join(self, other: RunOutput, numbers: Iterable[int], ranks: int) -> None:
        """Takes what another hub has of these ranks; of a rank that both have, whose is longer."""
        share = RUN_BYTES // max(ranks, 1)
        for number in numbers:
            told = other.ranks.get(number)
            known = self.ranks.get(number)
            if told is not None and (known is None or known.told <= told.told):
                self.ranks[number] = told
        self.ranks = dict(sorted(self.ranks.items()))
        self.share = min(self.share, share)
        for lines in self.ranks.values():
            lines.fit(self.share)

    def freeze(self) -> tuple[RankOutput, ...]:
        """As a snapshot holds it, in the order of ranks."""
        return tuple(lines.freeze(rank) for rank, lines in self.ranks.items())


def _printed(line: Line, stream: str) -> Printed:
    return Printed(line.wall_ns, stream, line.text[:LINE_CHARS])


def _size(printed: Printed) -> int:
    return LINE_BYTES + len(printed.text.encode())
