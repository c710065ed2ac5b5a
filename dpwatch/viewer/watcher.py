"""Finds runs, follows them, and takes the snapshots that the dashboard draws."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
import zmq

from dpwatch.run.derive.titles import with_unique_titles
from dpwatch.run.model.snapshot import HostGpu, Run, RunView, Snapshot
from dpwatch.runtime.paths import RunDir
from dpwatch.viewer.follower import Follower
from dpwatch.viewer.local_runs import LocalRuns
from dpwatch.wire.messages import PROTOCOL_VERSION, Command

INTERVAL_S = 0.25
"""Default interval between snapshots."""

LONGEST_S = 1.0
"""Longest interval between requests to a hub, which tell it that it is watched."""

PATIENCE_S = 0.05
"""How long a snapshot waits for outstanding answers."""

NAP_S = 0.25
"""Longest sleep, which delays new runs and requests for stacks."""

SCAN_S = 0.5

NOTICES = 64
"""Lines of a notice, at most."""


class Watcher:
    """Finds runs on this host and follows them; a `SnapshotSource` for the dashboard.

    Args:
        wanted: Whether to follow a run, given its id; by default all.
        session: Also follow the runs of this `dpwatch run` session.
        places: Returns the directories of runs; by default this host's.
        user_notice: Returns a notice for the user, "" if there is none.
        gpus: Returns GPUs to show.
        release_finished: Stop following finished runs of one process, so that their hubs can end;
            they stay in the snapshots.
        scan_s: Seconds between scans for runs.
        kept: Finished runs to show in addition.
        most: Show only this many runs, those that began last.

    Attributes:
        interval_s: Seconds between snapshots; may be set from any thread.
        command: State of the command that started the runs, sent to all hubs.
    """

    def __init__(
        self,
        wanted: Callable[[str], bool] = lambda run_id: True,
        session: str | None = None,
        places: Callable[[], Iterable[RunDir]] | None = None,
        user_notice: Callable[[], str] = lambda: "",
        gpus: Callable[[], tuple[HostGpu, ...]] = tuple,
        release_finished: bool = False,
        scan_s: float = SCAN_S,
        kept: Sequence[RunView] = (),
        most: int | None = None,
    ) -> None:
        self._kept = kept
        self._most = most
        self._wanted = wanted
        self._session = session
        self._places = places or LocalRuns()
        self._release_finished = release_finished
        self._scan_s = scan_s
        self._user_notice = user_notice
        self._gpus = gpus
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._followers: dict[str, Follower] = {}
        self._to_ask: deque[tuple[str, tuple[int, ...]]] = deque(maxlen=64)
        self._scan_at = self._shown_at = self._ask_at = 0.0
        self._shown: set[str] = set()
        self.interval_s = INTERVAL_S
        self.notice = ""
        self.command: Command | None = None
        self._scan()

    def next(self, timeout_s: float) -> Snapshot | None:
        """Waits for the next snapshot, one every `interval_s`; None after `timeout_s`.

        A snapshot with a new run is returned early.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if now >= self._scan_at:
                self._scan()
            due_at = self._shown_at + self.interval_s
            self._wait(min(deadline, due_at) - now)
            if (now := time.monotonic()) >= min(due_at, self._ask_at):
                self._ask()
                self._ask_at = now + LONGEST_S
            known = {path for path, each in self._followers.items() if each.complete}
            if now >= self._shown_at + self.interval_s or not known <= self._shown:
                self._shown_at, self._shown = now, known
                return self.snapshot()
            if now >= deadline:
                return None

    def ask_stacks(self, run_id: str, ranks: Sequence[int] = ()) -> None:
        """Requests stacks of a run's ranks, or of all if `ranks` is empty. Thread-safe.

        The next call of `next` sends the request, and answers appear in `RunView.stacks`.
        """
        self._to_ask.append((run_id, tuple(ranks)))

    def snapshot(self) -> Snapshot:
        """The current views of all followed runs, newest first."""
        views = [follower.view() for follower in self._followers.values()]
        runs = [view for view in views if view is not None]
        bad = [f for f in self._followers.values() if f.error and not f.closed]
        found = [f"run {f.place.run_id}: invalid data from its hub ({f.error})" for f in bad[:1]]
        notice = "\n".join([*([self.notice] if self.notice else []), *found])
        if self._most is not None:
            known = {view.run.run_id for view in runs}
            runs += [view for view in self._kept if view.run.run_id not in known]
            runs.sort(key=lambda view: view.run.began_s, reverse=True)
        shown = _with_unique_titles(_without_node_views(runs)[: self._most])
        places = self._places.places if isinstance(self._places, LocalRuns) else ()
        return Snapshot(tuple(shown), time.time(), notice, gpus=self._gpus(), places=places)

    @property
    def earlier(self) -> list[Run]:
        """Earlier runs of the hubs, which have ended."""
        return [run for follower in self._followers.values() for run in follower.earlier]

    @property
    def complete(self) -> bool:
        """Whether every run found has a view, or can't have one."""
        if isinstance(self._places, LocalRuns) and self._places.is_starting_hub:
            return False
        return all(f.complete or f.error or f.closed for f in self._followers.values())

    def close(self) -> None:
        """Closes every socket; a second call does nothing."""
        if self._context.closed:
            return
        for follower in self._followers.values():
            self._drop(follower)
        self._context.term()

    def scan(self) -> None:
        """Makes the next call of `next` scan for runs at once."""
        self._scan_at = 0.0

    def _scan(self) -> None:
        """Finds new runs, and disconnects from hubs that have ended."""
        self._scan_at = time.monotonic() + self._scan_s
        living: dict[str, tuple[RunDir, int]] = {}
        notices = [self._user_notice()]
        for place in self._places():
            info = place.read_info()
            if info is None or not (
                self._wanted(place.run_id) or (info.session and info.session == self._session)
            ):
                continue
            if info.protocol != PROTOCOL_VERSION:
                notices.append(other_protocol(place, info.protocol))
                continue
            living[str(place.path)] = (place, info.hub_pid)
        self.notice = "\n".join([each for each in notices if each][:NOTICES])
        for path, follower in self._followers.items():
            if self._release_finished and follower.is_done:
                follower.done = True
                self._drop(follower)
            # The hub has ended, or a successor, which numbers frames from 0, has replaced it.
            if path not in living or living[path][1] != follower.hub_pid:
                self._drop(follower)
        new = {
            path: self._follow(place, hub_pid)
            for path, (place, hub_pid) in living.items()
            if path not in self._followers or self._followers[path].is_to_be_replaced
        }
        kept = {path: f for path, f in self._followers.items() if path not in new}
        self._followers = new | kept

    def _follow(self, place: RunDir, hub_pid: int) -> Follower:
        follower = Follower(self._context, place, hub_pid, keeps_end=self._release_finished)
        self._poller.register(follower.answers, zmq.POLLIN)
        return follower

    def _drop(self, follower: Follower) -> None:
        if not follower.closed:
            follower.poll()
            self._poller.unregister(follower.answers)
            follower.close()

    def _wait(self, wait_s: float) -> None:
        """Waits until the next snapshot is due, or answers of new runs arrive."""
        while self._to_ask:
            run_id, ranks = self._to_ask.popleft()
            for follower in self._followers.values():
                if follower.place.run_id == run_id:
                    follower.ask_stacks(ranks)
        if self.complete:
            time.sleep(min(max(wait_s, 0), NAP_S))
            return
        for follower in self._followers.values():
            if not follower.complete:  # the others' turn comes with the next snapshot
                follower.ask()
        wait_s = min(wait_s, self._scan_at - time.monotonic())
        self._poller.poll(max(0, int(wait_s * 1e3)))
        self._poll()

    def _ask(self) -> None:
        """Requests updates from all hubs, and waits up to `PATIENCE_S` for the answers."""
        for follower in self._followers.values():
            if self.command is not None:
                follower.report_command(self.command)
            follower.ask()
        until = time.monotonic() + PATIENCE_S
        while any(each.is_waiting for each in self._followers.values()):
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            self._poller.poll(max(1, int(left_s * 1e3)))
            self._poll()

    def _poll(self) -> None:
        for follower in self._followers.values():
            follower.poll()


def other_protocol(place: RunDir, protocol: int) -> str:
    """A notice about a run of another protocol version, with the side to upgrade."""
    info = place.read_info()
    host = info.host if info else "its host"
    newer = protocol > PROTOCOL_VERSION
    where = "here" if newer else f"on {host}, in the Python that trains"
    return (
        f"run {place.run_id} on {host} speaks protocol {protocol}, "
        f"{'newer' if newer else 'older'} than this dpwatch's {PROTOCOL_VERSION}: "
        f"upgrade dpwatch {where}"
    )


def _with_unique_titles(views: list[RunView]) -> list[RunView]:
    runs = with_unique_titles([view.run for view in views])
    return [
        view if run is view.run else msgspec.structs.replace(view, run=run)
        for view, run in zip(views, runs, strict=True)
    ]


def _without_node_views(views: list[RunView]) -> list[RunView]:
    """Removes views of node hubs whose run is completely shown by its head."""
    hosts: dict[str, list[set[str]]] = {}
    for each in views:
        hosts.setdefault(each.run.run_id, []).append(set(each.run.hosts))
    return [
        each
        for each in views
        if not any(set(each.run.hosts) < whole for whole in hosts[each.run.run_id])
    ]
