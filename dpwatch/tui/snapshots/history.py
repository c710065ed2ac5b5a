"""Past snapshots to step back through, a bounded number of them.

Recent snapshots are all kept, older ones ever more sparsely: when the store is full, it drops the
one whose neighbours are closest together for its age. So a few hundred reach back over hours, and
still hold the last seconds in full.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from msgspec.structs import replace

from dpwatch.run.model.snapshot import Curve, RunView, Snapshot
from dpwatch.run.model.snapshot import History as Curves

MOST_FRAMES = 300
MOST_ROWS = 65_536
"""Rows of ranks in all snapshots, up to 80 MB: 12 snapshots of 4,096 ranks."""

STEPS_A_ROW = 2
"""This many steps of the timeline take the memory of a row, which is 1.1 to 1.5 kB."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    number: int
    snapshot: Snapshot
    rows: int


class History:
    """Snapshots by age, and which of them is shown. Pure: it reads no clock.

    Curves cover the whole training and would be stored hundreds of times; instead an old snapshot
    gets the newest curves, cut where its ranks were.

    Args:
        most_frames: The most snapshots to keep …
        most_rows: … and rows in them; the newest one is always kept.
    """

    def __init__(self, most_frames: int = MOST_FRAMES, most_rows: int = MOST_ROWS) -> None:
        self._most_frames = most_frames
        self._most_rows = most_rows
        self._kept: list[_Kept] = []
        self._rows = 0
        self._count = 0
        self._newest: Snapshot | None = None
        self._at: tuple[int, float] | None = None
        self._stepped = False

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, snapshot: Snapshot) -> None:
        """Adds the newest snapshot."""
        known = {id(view.run) for view in self._newest.runs} if self._newest else set()
        rows = sum(_rows(view) for view in snapshot.runs if id(view.run) not in known)
        bare = tuple(replace(view, history=Curves()) for view in snapshot.runs)
        self._count += 1
        self._kept.append(_Kept(self._count, replace(snapshot, runs=bare), rows))
        self._rows += rows
        self._newest = snapshot
        while len(self._kept) > 1 and (
            len(self._kept) > self._most_frames or self._rows > self._most_rows
        ):
            self._rows -= self._kept.pop(self._least()).rows

    def _least(self) -> int:
        """Index of the snapshot that is missed least."""
        times = [kept.snapshot.wall_s for kept in self._kept]
        now = times[-1]

        def spared(index: int) -> float:
            return (times[index + 1] - times[index - 1]) / max(now - times[index], 1e-3)

        return min(range(1, len(times) - 1), key=spared, default=0)

    def hold(self) -> None:
        """Pauses at the newest, as it is now."""
        if self._at is None and self._kept:
            self._at = self._place(self._kept[-1])

    def release(self) -> None:
        """Follows the newest again."""
        self._at = None
        self._stepped = False

    def step(self, by: int) -> Snapshot | None:
        """Steps to an older or newer one, if there is one.

        Returns:
            The one shown now, None if there is no other that way.
        """
        self.hold()
        if self._at is None:
            return None
        self._stepped = True
        number = self._at[0]
        older = [kept for kept in self._kept if kept.number < number]
        newer = [kept for kept in self._kept if kept.number > number]
        there = older[max(by, -len(older)) :] if by < 0 else newer[:by][::-1]
        if not there:
            return None
        self._at = self._place(there[0])
        return self._whole(there[0].snapshot)

    @staticmethod
    def _place(kept: _Kept) -> tuple[int, float]:
        return kept.number, kept.snapshot.wall_s

    @property
    def ago_s(self) -> float | None:
        """Seconds from the one shown to the newest, None while the newest is followed."""
        if self._at is None or self._newest is None:
            return None
        return max(self._newest.wall_s - self._at[1], 0.0)

    @property
    def edge(self) -> str:
        """`oldest` or `newest` if steps have led to the end, else ""."""
        if self._at is None or not self._stepped:
            return ""
        if self._at[0] >= self._kept[-1].number:
            return "newest"
        return "oldest" if self._at[0] <= self._kept[0].number else ""

    def _whole(self, snapshot: Snapshot) -> Snapshot:
        """With the curves as they were."""
        newest = {view.run.run_id: view for view in self._newest.runs} if self._newest else {}
        runs = (_with_curves(view, newest.get(view.run.run_id)) for view in snapshot.runs)
        return replace(snapshot, runs=tuple(runs))


def _rows(view: RunView) -> int:
    steps = sum(len(lane.steps) for lane in view.lanes)
    return len(view.run.ranks) + steps // STEPS_A_ROW


def _with_curves(view: RunView, newest: RunView | None) -> RunView:
    """The view with the newest's curves, up to where each of its ranks was."""
    if newest is None:
        return view
    if newest.run is view.run:
        return newest
    known, rows = newest.history, newest.run.ranks
    places = {(rank.rank, rank.device): index for index, rank in enumerate(rows)}
    own = [(places.get((rank.rank, rank.device)), rank.steps) for rank in view.run.ranks]

    def cut(curves: tuple[Curve, ...]) -> tuple[Curve, ...]:
        return tuple(
            Curve() if index is None or index >= len(curves) else _until(curves[index], steps)
            for index, steps in own
        )

    curves = Curves(
        loss=_until(known.loss, view.run.steps),
        step_ms=_until(known.step_ms, view.run.steps),
        rank_step_ms=cut(known.rank_step_ms),
        rank_peak_bytes=cut(known.rank_peak_bytes),
    )
    return replace(view, history=curves)


def _until(curve: Curve, steps: int) -> Curve:
    """The curve's points up to that step."""
    end = bisect_right(curve.steps, steps - 1)
    return curve if end == len(curve.steps) else Curve(curve.steps[:end], curve.values[:end])
