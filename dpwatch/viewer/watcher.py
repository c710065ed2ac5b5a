"""Finding runs, following all of them, and taking frozen snapshots: what a dashboard draws."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
import zmq

from dpwatch.run.derive.titles import told_apart
from dpwatch.run.model.snapshot import HostGpu, Run, RunView, Snapshot
from dpwatch.runtime.paths import RunDir
from dpwatch.viewer.follower import Follower
from dpwatch.viewer.local_runs import LocalRuns
from dpwatch.wire.messages import PROTOCOL_VERSION, Command

INTERVAL_S = 0.25
"""How often a viewer takes a snapshot, if it is not told otherwise."""

LONGEST_S = 1.0
"""How often a hub is asked at least, so that it knows that somebody is there."""

PATIENCE_S = 0.05
"""How long a snapshot waits for answers that it has asked for."""

NAP_S = 0.25
"""How long it may be away from its runs: new ones, and requests for stacks, wait for it."""

SCAN_S = 0.5

NOTICES = 64
"""Lines that a notice has at most."""


class Watcher:
    """Finds runs on this host and follows them; a `SnapshotSource` for the dashboard.

    Args:
        wanted: Whether to follow a run, by its id; all of them by default.
        session: Follow what this `dpwatch run` has started too.
        places: Where runs are; this host's by default.
        said: What else the viewer's person is to be told, "" when all is well.
        gpus: This host's GPUs.
        lets_go: Runs of one process that is over need not be followed any more, so that their hubs
            can end; they stay in the snapshots.
        scan_s: How often runs are looked for.
        kept: Runs whose hubs have gone, to be shown beside those that are followed.
        most: How many runs to show, those that began last.

    Attributes:
        interval_s: Seconds from one snapshot to the next; may be set from any thread.
        command: What all hubs are to be told of the command that started their runs.
    """

    def __init__(
        self,
        wanted: Callable[[str], bool] = lambda run_id: True,
        session: str | None = None,
        places: Callable[[], Iterable[RunDir]] | None = None,
        said: Callable[[], str] = lambda: "",
        gpus: Callable[[], tuple[HostGpu, ...]] = tuple,
        lets_go: bool = False,
        scan_s: float = SCAN_S,
        kept: Sequence[RunView] = (),
        most: int | None = None,
    ) -> None:
        self._kept = kept
        self._most = most
        self._wanted = wanted
        self._session = session
        self._places = places or LocalRuns()
        self._lets_go = lets_go
        self._scan_s = scan_s
        self._said = said
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
        """The next snapshot, one every `interval_s`; None when the time is over first.

        One that shows a run for the first time does not wait for its turn.
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
        """Asks a run's ranks for their stacks, all if none are named. From any thread.

        It goes out with the next call of `next`, and what comes of it is in `RunView.stacks`.
        """
        self._to_ask.append((run_id, tuple(ranks)))

    def snapshot(self) -> Snapshot:
        """All followed runs as they are known now, newest first."""
        views = [follower.view() for follower in self._followers.values()]
        runs = [view for view in views if view is not None]
        bad = [f for f in self._followers.values() if f.nonsense and not f.closed]
        told = [f"run {f.place.run_id}: its hub makes no sense ({f.nonsense})" for f in bad[:1]]
        notice = "\n".join([*([self.notice] if self.notice else []), *told])
        if self._most is not None:
            known = {view.run.run_id for view in runs}
            runs += [view for view in self._kept if view.run.run_id not in known]
            runs.sort(key=lambda view: view.run.began_s, reverse=True)
        shown = _told_apart(_whole_ones(runs)[: self._most])
        places = self._places.places if isinstance(self._places, LocalRuns) else ()
        return Snapshot(tuple(shown), time.time(), notice, gpus=self._gpus(), places=places)

    @property
    def earlier(self) -> list[Run]:
        """Runs that are over and whose hubs have begun anew with others since."""
        return [run for follower in self._followers.values() for run in follower.earlier]

    @property
    def complete(self) -> bool:
        """Whether every run found has shown what is known of it."""
        if isinstance(self._places, LocalRuns) and self._places.awaits:
            return False
        return all(f.complete or f.nonsense or f.closed for f in self._followers.values())

    def close(self) -> None:
        """Closes every socket; a second call does nothing."""
        if self._context.closed:
            return
        for follower in self._followers.values():
            self._drop(follower)
        self._context.term()

    def scan(self) -> None:
        """Looks for runs with the next call of `next`, and not only when it is time to."""
        self._scan_at = 0.0

    def _scan(self) -> None:
        """Looks for new runs, and lets go of hubs that have ended."""
        self._scan_at = time.monotonic() + self._scan_s
        living: dict[str, tuple[RunDir, int]] = {}
        notices = [self._said()]
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
            if self._lets_go and follower.is_done:
                follower.done = True
                self._drop(follower)
            # Gone, or another hub in its place: a killed one's successor counts frames anew.
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
        follower = Follower(self._context, place, hub_pid, keeps_end=self._lets_go)
        self._poller.register(follower.answers, zmq.POLLIN)
        return follower

    def _drop(self, follower: Follower) -> None:
        if not follower.closed:
            follower.poll()
            self._poller.unregister(follower.answers)
            follower.close()

    def _wait(self, wait_s: float) -> None:
        """Until the next snapshot is due, or something is known of a run that was not."""
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
        """Asks all hubs for what is new, and waits a moment for their answers."""
        for follower in self._followers.values():
            if self.command is not None:
                follower.tell(self.command)
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
    """A line about a run of another protocol version, that says which side to upgrade."""
    info = place.read_info()
    host = info.host if info else "its host"
    newer = protocol > PROTOCOL_VERSION
    where = "here" if newer else f"on {host}, in the Python that trains"
    return (
        f"run {place.run_id} on {host} speaks protocol {protocol}, "
        f"{'newer' if newer else 'older'} than this dpwatch's {PROTOCOL_VERSION}: "
        f"upgrade dpwatch {where}"
    )


def _told_apart(views: list[RunView]) -> list[RunView]:
    runs = told_apart([view.run for view in views])
    return [
        view if run is view.run else msgspec.structs.replace(view, run=run)
        for view, run in zip(views, runs, strict=True)
    ]


def _whole_ones(views: list[RunView]) -> list[RunView]:
    """Without what a node's hub shows of a run that its head shows whole."""
    hosts: dict[str, list[set[str]]] = {}
    for each in views:
        hosts.setdefault(each.run.run_id, []).append(set(each.run.hosts))
    return [
        each
        for each in views
        if not any(set(each.run.hosts) < whole for whole in hosts[each.run.run_id])
    ]
