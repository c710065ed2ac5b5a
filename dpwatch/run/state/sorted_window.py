"""A lane's last steps in order of size, kept in order as they come.

Medians need their values in order. A viewer looks four times a second at a window of which hardly
a step is new; to sort all of it each time takes most of what its figures cost.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from operator import itemgetter

from dpwatch.run.state.series import NONE, STEP_COLUMNS, WINDOW, Window
from dpwatch.wire.messages import PHASES

PHASE_FIELDS = tuple(f"{phase}_ns" for phase in PHASES)
SHARES = ("gil_wait_ns", "idle_ns", "runqueue_ns")

MEANS = ("exposed_ns", "comm_ns")
"""What is a mean over steps and not a typical one, so that what comes every few steps counts."""

_sorted_ones = itemgetter(*map(STEP_COLUMNS.index, PHASE_FIELDS))
_in_shares = itemgetter(*map(STEP_COLUMNS.index, SHARES))
_in_means = itemgetter(*map(STEP_COLUMNS.index, MEANS))

FEW = 16
"""Up to so many new steps are sorted in; with more it is begun anew."""

Row = tuple[int, ...]


class Ordered:
    """The steps of one `Window`, as far as it has been followed.

    Attributes:
        took_ns: How long the steps took, in order of size.
        fields: The known values of each of `PHASE_FIELDS`, in order of size.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pushed = 0
        self._rows: deque[Row] = deque()
        self.took_ns: list[int] = []
        self.fields: list[list[int]] = [[] for _ in PHASE_FIELDS]
        # Of each share its nanoseconds, and how long the steps took in which it is known; …
        self._shares = [[0, 0] for _ in SHARES]
        # … of later steps and of the first, in how many a number is known, its sum, and how long
        # they took: of `MEANS`, of samples, and of the steps themselves.
        self._later, self._first = ([[0, 0, 0] for _ in range(len(MEANS) + 2)] for _ in range(2))

    def follow(self, window: Window) -> None:
        """Takes in what is new of the window."""
        new = window.pushed - self._pushed
        if not 0 <= new <= FEW:
            self._begin()
            new = min(window.pushed, WINDOW)
        for row in window.latest(new):
            if len(self._rows) == WINDOW:
                self._leave(self._rows.popleft())
            self._rows.append(row)
            self._enter(row)
        self._pushed = window.pushed

    def _enter(self, row: Row) -> None:
        insort(self.took_ns, row[2] - row[1])
        for values, value in zip(self.fields, _sorted_ones(row), strict=True):
            if value != NONE:
                insort(values, value)
        self._sum(row, 1)

    def _leave(self, row: Row) -> None:
        del self.took_ns[bisect_left(self.took_ns, row[2] - row[1])]
        for values, value in zip(self.fields, _sorted_ones(row), strict=True):
            if value != NONE:
                del values[bisect_left(values, value)]
        self._sum(row, -1)

    def _sum(self, row: Row, sign: int) -> None:
        took_ns = row[2] - row[1]
        for held, ns in zip(self._shares, _in_shares(row), strict=True):
            if ns != NONE:
                held[0] += sign * ns
                held[1] += sign * took_ns
        sums = self._later if row[0] else self._first
        for held, value in zip(sums, (*_in_means(row), row[-1], took_ns), strict=True):
            if value != NONE:
                held[0] += sign
                held[1] += sign * value
                held[2] += sign * took_ns

    @property
    def last_ns(self) -> int | None:
        """How long the last step took."""
        return self._rows[-1][2] - self._rows[-1][1] if self._rows else None

    @property
    def shares(self) -> tuple[float | None, ...]:
        """`SHARES` of wall time, over the steps in which each was measured."""
        return tuple(ns / wall_ns if wall_ns else None for ns, wall_ns in self._shares)

    @property
    def samples_per_s(self) -> float | None:
        """The lane's. A first step also holds what start-up costs: it counts only by itself."""
        _, samples, took_ns = self._sums(len(MEANS))
        return samples * 1e9 / took_ns if took_ns else None

    @property
    def means_ms(self) -> tuple[float | None, ...]:
        """`MEANS` per step, and the steps' own length; without the first step as above."""
        return tuple(
            ns / steps / 1e6 if steps else None
            for steps, ns, _ in (self._sums(i) for i in (*range(len(MEANS)), -1))
        )

    @property
    def exposed_share(self) -> float | None:
        """Of the wall time of the steps in which exposed time is known, without the first."""
        _, ns, took_ns = self._sums(0)
        return ns / took_ns if took_ns else None

    def _sums(self, i: int) -> list[int]:
        return self._later[i] if self._later[i][0] else self._first[i]
