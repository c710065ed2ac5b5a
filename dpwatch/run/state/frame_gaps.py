"""Tracks which of a sender's numbered frames have arrived, to count the missing ones.

A plain count could not be merged: hubs that have followed the same rank, one after the other, each
know a different part, and merging needs the union of the received sets.
"""

from __future__ import annotations

import msgspec

MOST_SPANS = 32


class ReceivedFrames(msgspec.Struct, array_like=True):
    """Frame numbers received, as sorted inclusive spans.

    Attributes:
        forgotten: Sum of the gaps before the last `MOST_SPANS` spans.
    """

    spans: list[tuple[int, int]] = []
    forgotten: int = 0

    def add(self, number: int) -> None:
        """Adds a frame number."""
        if self.spans and self.spans[-1][1] + 1 == number:
            self.spans[-1] = (self.spans[-1][0], number)
        else:
            self._unite([(number, number)])

    def merge(self, other: ReceivedFrames) -> None:
        """Adds the frames that another hub has received."""
        self.forgotten = max(self.forgotten, other.forgotten)
        self._unite(other.spans)

    @property
    def missing(self) -> int:
        """Count of numbers from 0 to the last that have not arrived."""
        if not self.spans:
            return 0
        came = sum(last - first + 1 for first, last in self.spans)
        return self.spans[-1][1] + 1 - came + self.forgotten

    def _unite(self, others: list[tuple[int, int]]) -> None:
        united: list[tuple[int, int]] = []
        for first, last in sorted([*self.spans, *others]):
            if united and first <= united[-1][1] + 1:
                united[-1] = (united[-1][0], max(last, united[-1][1]))
            else:
                united.append((first, last))
        while len(united) > MOST_SPANS:
            (first, end), (begin, last) = united[:2]
            self.forgotten += begin - end - 1
            united[:2] = [(first, last)]
        self.spans = united
