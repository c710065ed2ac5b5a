"""Which of a sender's numbered frames have come: so that gaps are counted, and counted once.

A sum of gaps could not be merged: two hubs that have followed the same rank, one after the other or
with a dead one between, know different parts, and what both lack is a union of sets.
"""

from __future__ import annotations

import msgspec

MOST_SPANS = 32


class Received(msgspec.Struct, array_like=True):
    """Numbers that have come, as spans from first to last, both included, in order.

    Attributes:
        forgotten: Gaps that are so many spans back that only their sum is kept.
    """

    spans: list[tuple[int, int]] = []
    forgotten: int = 0

    def add(self, number: int) -> None:
        """A frame has come."""
        if self.spans and self.spans[-1][1] + 1 == number:
            self.spans[-1] = (self.spans[-1][0], number)
        else:
            self._unite([(number, number)])

    def join(self, other: Received) -> None:
        """What has come to another hub too."""
        self.forgotten = max(self.forgotten, other.forgotten)
        self._unite(other.spans)

    @property
    def missing(self) -> int:
        """How many numbers from 0 to the last have not come."""
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
