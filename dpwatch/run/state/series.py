"""Bounded series of steps and tallies.

They are packed in arrays with 8 bytes per number. Python objects take four times as much, and a run
of a thousand ranks keeps millions of numbers.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import astuple

from dpwatch.wire.arrays import Ints
from dpwatch.wire.messages import Step

WINDOW = 128
"""Number of recent steps that figures (medians, quantiles, shares) are computed over."""

NONE = -1
"""Represents an unknown number in packed data."""


STEP_COLUMNS = (*Step.__struct_fields__[1:14], "comm_ns")
"""Fields of a step in a row: all but its device (known by the lane), its loss and its samples."""

STEP_WIDTH = len(STEP_COLUMNS) + 1
"""Columns of a row: `STEP_COLUMNS`, then samples."""

SAMPLES = STEP_WIDTH - 1
_kept = operator.attrgetter(*STEP_COLUMNS, "samples")
_PACKED = struct.Struct(f"={STEP_WIDTH}q")
STEP_BYTES = _PACKED.size


def step_row(step: Step) -> Sequence[int]:
    """Converts a step to a row."""
    row: Sequence[int | None] = _kept(step)
    return [NONE if each is None else each for each in row]


class Window(msgspec.Struct, dict=True):  # `dict` holds a cache, which is not encoded
    """The last `WINDOW` steps of a lane, as rows of `STEP_WIDTH` numbers.

    Attributes:
        rows: Ring buffer; once full, its oldest row is at `pushed % WINDOW`.
        pushed: Number of steps added so far.
    """

    rows: Ints = msgspec.field(default_factory=Ints)
    pushed: int = 0

    def push(self, step: Step) -> None:
        """Adds a step, replacing the oldest if full.

        Raises:
            OverflowError: A number needs more than 8 bytes.
        """
        row = step_row(step)
        try:
            if self.pushed < WINDOW:
                self.rows.frombytes(_PACKED.pack(*row))
            else:
                _PACKED.pack_into(self.rows, self.pushed % WINDOW * STEP_BYTES, *row)
        except struct.error as error:
            raise OverflowError(str(error)) from None
        self.pushed += 1

    def extend(self, rows: memoryview) -> None:
        """Adds rows, given as bytes, replacing the oldest if full."""
        count = len(rows) // STEP_BYTES
        room = max(0, WINDOW - self.pushed)
        if room:
            self.rows.frombytes(rows[: room * STEP_BYTES])
            self.pushed += min(room, count)
        if count > room:
            late = min(count - room, WINDOW)
            rows = rows[(count - late) * STEP_BYTES :]
            self.pushed += count - room
            at = (self.pushed - late) % WINDOW
            end = min(WINDOW, at + late)
            held = memoryview(self.rows).cast("B")
            held[at * STEP_BYTES : end * STEP_BYTES] = rows[: (end - at) * STEP_BYTES]
            held[: (at + late - end) * STEP_BYTES] = rows[(end - at) * STEP_BYTES :]

    def column(self, place: int, last: int = WINDOW) -> list[int]:
        """A column of the latest rows, oldest first; unknown values are `NONE`."""
        column: array[int] = self.rows[place::STEP_WIDTH]
        if self.pushed > WINDOW:
            turn = self.pushed % WINDOW
            column = column[turn:] + column[:turn]
        return column[-last:].tolist()

    def field(self, name: str, last: int = WINDOW) -> list[int]:
        """A field of `Step`, oldest first; unknown values are `NONE`."""
        return self.column(STEP_COLUMNS.index(name), last)

    def known(self, name: str, last: int = WINDOW) -> list[int]:
        """The known values of a field of `Step` in the latest rows."""
        found = self.field(name, last)
        return [each for each in found if each != NONE] if NONE in found else found

    def took_ns(self, last: int = WINDOW) -> list[int]:
        """Durations of the latest steps."""
        return [b - a for a, b in zip(self.column(1, last), self.column(2, last), strict=True)]

    def steps(self, device: int, last: int = WINDOW) -> list[Step]:
        """The latest steps, without their losses."""
        return [_step(device, row) for row in self.latest(last)]

    def newest(self, device: int, count: int) -> tuple[Step, ...]:
        """The latest `count` steps; steps returned before are the same objects again."""
        pushed, kept = vars(self).get("cache", (0, ()))
        new = self.pushed - pushed
        found = (*kept, *self.steps(device, new)) if 0 <= new < count else self.steps(device, count)
        newest: tuple[Step, ...] = tuple(found[-count:])
        vars(self)["cache"] = self.pushed, newest
        return newest

    def latest(self, last: int) -> list[tuple[int, ...]]:
        """The latest rows, oldest first."""
        count = min(last, self.pushed, WINDOW)
        first = (self.pushed - count) % WINDOW
        places = (row % WINDOW * STEP_BYTES for row in range(first, first + count))
        return [_PACKED.unpack_from(self.rows, at) for at in places]


def _step(device: int, row: tuple[int, ...]) -> Step:
    known = [None if each == NONE else each for each in row] if NONE in row else row
    *fields, comm, samples = known
    return Step(device, *fields, None, samples, comm)  # type: ignore[call-arg]


class Tally(msgspec.Struct, array_like=True, gc=False):
    """Sums over the calls of one step: count, payload bytes, bytes on the wire, and times.

    `timed_ns` is the duration of `timed_calls`, `waited_ns` the time that callers of `waited_calls`
    were blocked. `wait_ns` was spent waiting for other ranks, with overlaps counted once.
    """

    calls: int = 0
    nbytes: int = 0
    wire_bytes: int = 0
    timed_calls: int = 0
    timed_ns: int = 0
    wait_ns: int = 0
    waited_calls: int = 0
    waited_ns: int = 0


CALLS, NBYTES, WIRE, TIMED_CALLS, TIMED_NS, WAIT_NS, WAITED_CALLS, WAITED_NS = range(1, 9)
"""Columns of `ByStep.cells`, after the step's number."""

TALLY_WIDTH = 9
_EMPTY = array("q", [-1, *[0] * (TALLY_WIDTH - 1)])
_FIRST_SIZE = 4


class ByStep(msgspec.Struct):
    """A `Tally` for each of the last `WINDOW` steps in which something happened.

    Attributes:
        cells: One row of `TALLY_WIDTH` numbers per step, at index `step % size`.
        size: Number of rows; grows up to `WINDOW`.
        seen: Number of steps that have had a row.
    """

    cells: Ints = msgspec.field(default_factory=lambda: Ints(_EMPTY * _FIRST_SIZE))
    size: int = _FIRST_SIZE
    seen: int = 0

    def at(self, step: int) -> int | None:
        """Offset of the step's row, created on first use; None if older than the kept ones."""
        base = step % self.size * TALLY_WIDTH
        return base if self.cells[base] == step else self._create(step)

    def _create(self, step: int) -> int | None:
        base = step % self.size * TALLY_WIDTH
        held = self.cells[base]
        while held >= 0 and abs(held - step) < WINDOW and self.size < WINDOW:
            self._grow()
            base = step % self.size * TALLY_WIDTH
            held = self.cells[base]
        if held > step:
            return None
        self.cells[base : base + TALLY_WIDTH] = _EMPTY
        self.cells[base] = step
        self.seen += 1
        return base

    def _grow(self) -> None:
        old, self.size = self.cells, 2 * self.size
        self.cells = Ints(_EMPTY * self.size)
        for at in range(0, len(old), TALLY_WIDTH):
            if old[at] >= 0:
                base = old[at] % self.size * TALLY_WIDTH
                self.cells[base : base + TALLY_WIDTH] = old[at : at + TALLY_WIDTH]

    def find(self, step: int) -> int | None:
        """Offset of the step's row, None if it has none."""
        base = step % self.size * TALLY_WIDTH
        return base if self.cells[base] == step else None

    @property
    def oldest(self) -> int:
        """The first step that has a row, 0 if none has."""
        return min((step for step in self.cells[::TALLY_WIDTH] if step >= 0), default=0)

    def over(self, steps: Sequence[int]) -> list[Tally]:
        """Tallies of these steps, empty for steps without calls."""
        cells, found = self.cells, []
        for step in steps:
            base = step % self.size * TALLY_WIDTH
            row = cells[base + 1 : base + TALLY_WIDTH] if cells[base] == step else ()
            found.append(Tally(*row) if row else _NOTHING)
        return found

    def column(self, column: int, steps: Iterable[int]) -> list[int]:
        """One column of these steps, 0 for steps without calls."""
        places = map(self.find, steps)
        return [0 if at is None else self.cells[at + column] for at in places]


_NOTHING = Tally()


def summed(each: Sequence[Tally]) -> Tally:
    """The sum of tallies."""
    if len(each) == 1:
        return each[0]
    return Tally(*map(sum, zip(*map(astuple, each), strict=True)))


def keep_last(items: list[object], limit: int) -> None:
    """Drops items from the front once a list exceeds twice the limit, so the cost is amortized."""
    if len(items) > 2 * limit:
        del items[: len(items) - limit]
