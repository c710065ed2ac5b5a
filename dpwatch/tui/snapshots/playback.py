"""Which moment of which run is on the screen: the newest, a paused one, or an earlier one.

source → thread worker → `Arrived` → `snapshot` → `frame`, which the app draws.
"""

from __future__ import annotations

from textual import on, work
from textual.reactive import var
from textual.worker import get_current_worker

from dpwatch.run.model.snapshot import RunView, Snapshot
from dpwatch.text_safety import clean
from dpwatch.tui.render.export import Takeaway
from dpwatch.tui.snapshots.frame import Frame, last_known
from dpwatch.tui.snapshots.history import History
from dpwatch.tui.snapshots.refresh_rate import USUAL_S, Paced, beside
from dpwatch.tui.snapshots.source import Arrived, SnapshotSource, SourceFailed

POLL_S = 0.25
"""How long the worker waits for a snapshot before it checks whether the app is closing."""


class Moments(Takeaway):
    """An app over a stream of snapshots.

    Args:
        source: Read by a worker thread until the app ends, then closed.
        interval_s: The refresh interval, if the source supports it.

    Attributes:
        snapshot: The one shown.
        frame: What is drawn of it.
        paused: Whether newer ones are held back.
    """

    # `var`: a change repaints the widgets bound to it, not the whole screen.
    snapshot: var[Snapshot | None] = var[Snapshot | None](None, always_update=True)
    frame: var[Frame] = var(Frame(snapshot=Snapshot(runs=(), wall_s=0.0)))
    paused: var[bool] = var(False)

    def __init__(self, source: SnapshotSource, interval_s: float) -> None:
        super().__init__()
        self._source = source
        self._interval_s = interval_s
        if isinstance(source, Paced):
            source.interval_s = interval_s
        self._newest: Snapshot | None = None
        self._held: Snapshot | None = None
        self._history = History()
        self._picked_run: str | None = None
        self._last_live_s: dict[str, float] = {}
        self._trouble = ""

    @property
    def stays(self) -> bool:
        """Whether the run on the screen stays when a newer one appears."""
        return False

    def show(self) -> None:
        """Draws the frame."""
        raise NotImplementedError

    @work(thread=True, exclusive=True, group="source")
    def _read(self) -> None:
        """The source's thread, the only one that touches it."""
        worker = get_current_worker()
        try:
            while not worker.is_cancelled:
                snapshot = self._source.next(POLL_S)
                if snapshot is not None and not worker.is_cancelled:
                    self._newest = snapshot
                    self.post_message(Arrived(snapshot))
        except Exception as error:  # noqa: BLE001 - whatever it is, the screen says so
            self.post_message(SourceFailed(str(error) or type(error).__name__))
        finally:
            self._source.close()

    @on(Arrived)
    def _take(self, message: Arrived) -> None:
        for view in message.snapshot.runs:
            if view.connection == "live":
                self._last_live_s[view.run.run_id] = message.snapshot.wall_s
        if message.snapshot is not self._newest:
            return  # drawing is slower than the source: a newer one is already queued
        self._held = message.snapshot
        self._history.add(message.snapshot)
        if not self.paused:
            self.snapshot = message.snapshot
        else:
            self.make_frame()

    @on(SourceFailed)
    def _say(self, message: SourceFailed) -> None:
        self._trouble = clean(message.reason, 200)
        self.make_frame()

    def watch_snapshot(self) -> None:
        """New data."""
        self.make_frame()

    def watch_paused(self, paused: bool) -> None:
        """Show the newest snapshot on resuming."""
        if paused:
            self._history.hold()
        else:
            self._history.release()
        if not paused and self._held is not None:
            self.snapshot = self._held
        self.make_frame()

    def make_frame(self) -> None:
        """The current frame."""
        snapshot = self.snapshot or self.frame.snapshot
        runs = snapshot.runs
        ids = [view.run.run_id for view in runs]
        picked = self._picked_run if self._picked_run in ids else None
        if not self.paused:  # further back a run may not have started
            self._picked_run = picked
        newest = ids[0] if ids else None
        stays = self.stays and self.frame.run_id in ids
        run_id = picked or (self.frame.run_id if stays else newest)
        frame = Frame(
            snapshot=last_known(snapshot),
            run_id=run_id,
            paused=self.paused,
            newest=_view_of(self._held, run_id) if self.paused else None,
            ago_s=self._history.ago_s,
            edge=self._history.edge,
            interval_s=None if self._interval_s == USUAL_S else self._interval_s,
            silent_s=self._silent_s(snapshot, run_id),
            trouble=self._trouble,
        )
        if not frame.looks_like(self.frame):
            self.frame = frame
        self.show()

    def _silent_s(self, snapshot: Snapshot, run_id: str | None) -> float | None:
        views = snapshot.runs
        stale = any(v.run.run_id == run_id and v.connection == "stale" for v in views)
        since = self._last_live_s.get(run_id or "")
        if not stale or since is None:
            return None
        return max(snapshot.wall_s - since, 0.0)

    def action_pause(self) -> None:
        """Pause the screen, or resume."""
        self.paused = not self.paused

    def action_rewind(self, by: int) -> None:
        """Pause the screen, and step that many snapshots back or forward."""
        seen = self._history.step(by)
        self.paused = self.paused or self._held is not None
        if seen is not None:
            self.snapshot = seen
        else:
            self.make_frame()

    def action_pace(self, by: int) -> None:
        """Refresh less often (1) or more often (-1)."""
        if isinstance(self._source, Paced):
            self._interval_s = self._source.interval_s = beside(self._interval_s, by)
        self.make_frame()

    def action_run(self, by: int) -> None:
        """Switch to an older or newer run; picking the newest one follows later ones."""
        ids = [view.run.run_id for view in self.frame.snapshot.runs]
        if len(ids) > 1 and self.frame.run_id in ids:
            # ids are newest first, and the next run is the one started later
            self.pick(ids[(ids.index(self.frame.run_id) - by) % len(ids)])

    def pick(self, run_id: str) -> None:
        """Show that run."""
        newest = self.frame.snapshot.runs[0].run.run_id
        follows = run_id == newest and not self.stays
        self._picked_run = None if follows else run_id
        self.make_frame()


def _view_of(snapshot: Snapshot | None, run_id: str | None) -> RunView | None:
    views = snapshot.runs if snapshot else ()
    return next((view for view in views if view.run.run_id == run_id), None)
