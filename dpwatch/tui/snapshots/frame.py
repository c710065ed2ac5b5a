"""What the widgets draw: a snapshot and the user's choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from dpwatch.run.model.snapshot import ENDED, SEVERITIES, Diagnosis, Run, RunView, Snapshot


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One moment of the dashboard. Equal only to itself: comparing 1,000 ranks costs too much.

    Attributes:
        snapshot: Everything known; not updated while paused.
        run_id: The run on screen, None if there is none.
        paused: Whether newer snapshots are held back …
        newest: … and the current state of the run on screen meanwhile.
        ago_s: How old the snapshot is while paused, else None.
        edge: `oldest` or `newest` if there is no older or newer one to step to, else "".
        interval_s: The refresh interval, None for the usual one.
        silent_s: How long since the hub's last report, None while it is live.
        trouble: Why there will be no new data, "" while the source works.
    """

    snapshot: Snapshot
    run_id: str | None = None
    paused: bool = False
    newest: RunView | None = None
    ago_s: float | None = None
    edge: str = ""
    interval_s: float | None = None
    silent_s: float | None = None
    trouble: str = ""

    def looks_like(self, other: Frame) -> bool:
        """Whether nothing is new: the same runs' views, in the same second."""
        ours, theirs = self.snapshot, other.snapshot
        return (
            len(ours.runs) == len(theirs.runs)
            and all(mine is its for mine, its in zip(ours.runs, theirs.runs, strict=True))
            and self.newest is other.newest
            and self._beside() == other._beside()
        )

    def _beside(self) -> tuple[object, ...]:
        seen = self.snapshot
        said = seen.notice, seen.progress, seen.search, seen.gpus, int(seen.wall_s)
        held = self.paused, self.ago_s, self.edge, self.interval_s, self.silent_s, self.trouble
        return self.run_id, *said, *held

    @property
    def view(self) -> RunView | None:
        """The run on screen."""
        return next((v for v in self.snapshot.runs if v.run.run_id == self.run_id), None)

    @property
    def newest_steps(self) -> int | None:
        """How far the run on screen has got while paused."""
        return self.newest.run.steps if self.newest else None

    @property
    def state(self) -> str:
        """The state of the run on screen, or `stale` while its hub doesn't report."""
        view = self.view
        if view is None:
            return "waiting"
        stale = view.connection == "stale" and view.run.state not in ENDED
        return "stale" if stale else view.run.state


def last_known(snapshot: Snapshot) -> Snapshot:
    """The snapshot, with ranks of silent hubs shown as stale instead of running."""
    if all(view.connection != "stale" for view in snapshot.runs):
        return snapshot
    return replace(snapshot, runs=tuple(_last_known(view) for view in snapshot.runs))


def _last_known(view: RunView) -> RunView:
    if view.connection != "stale" or view.run.state in ENDED:
        return view
    ranks = [
        rank if rank.state in ENDED else replace(rank, state="stale") for rank in view.run.ranks
    ]
    return replace(view, run=replace(view.run, state="stale", ranks=ranks))


def worst_first(diagnoses: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Diagnoses by severity; the order within one is kept."""
    order = {severity: -index for index, severity in enumerate(SEVERITIES)}
    return sorted(diagnoses, key=lambda d: order.get(d.severity, 1))


def named_rows(run: Run) -> dict[tuple[int, str], str]:
    """Rows, by rank and device, that a finding is about, with its worst severity.

    A finding about every row names none.
    """
    named: dict[tuple[int, str], str] = {}
    for found in worst_first(run.diagnoses):
        ranks, device = {*found.ranks}, found.evidence.get("device")
        rows = [
            (row.rank, row.device)
            for row in run.ranks
            if row.rank in ranks and device in (None, row.device)
        ]
        if len(rows) < len(run.ranks):
            named = dict.fromkeys(rows, found.severity) | named
    return named


def all_diagnoses(snapshot: Snapshot) -> list[tuple[RunView, Diagnosis]]:
    """Every run's diagnoses, newest run first, worst first within a run."""
    return [(view, d) for view in snapshot.runs for d in worst_first(view.run.diagnoses)]


def latest_by_strategy(snapshot: Snapshot) -> list[RunView]:
    """The newest run of each strategy and title, in the order they were first run.

    One strategy may be run with several settings side by side; the title distinguishes them.
    """
    newest: dict[tuple[str, str], RunView] = {}
    for view in snapshot.runs:
        newest.setdefault((view.run.strategy, view.run.title), view)
    first_seen = dict.fromkeys((v.run.strategy, v.run.title) for v in reversed(snapshot.runs))
    return [newest[key] for key in first_seen]
