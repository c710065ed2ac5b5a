"""A viewer's end: following runs, and taking a frozen snapshot of all of them.

`Follower` asks a run's hub for its view, as often as a viewer draws, and is sent what has changed.
`Watcher` finds runs and follows them all. Both live on one thread; nothing a viewer does can reach
a rank.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import zmq

from dpwatch.run.derive.titles import told_apart
from dpwatch.run.model.snapshot import HostGpu, Run, RunView, Snapshot
from dpwatch.run.model.view_message import ViewReader
from dpwatch.runtime.paths import RunDir
from dpwatch.runtime.stack_request import STACKS_REQUEST, encode_request
from dpwatch.viewer.local_runs import LocalRuns
from dpwatch.wire import codec, transport
from dpwatch.wire.messages import PROTOCOL_VERSION, Command
from dpwatch.wire.viewer_messages import (
    COMMAND_REQUEST,
    SAME,
    STATE,
    STATE_REQUEST,
    VIEW,
    VIEW_NUMBER,
    VIEW_REQUEST,
)

if TYPE_CHECKING:
    from dpwatch.run.state.run_state import RunState

STALE_S = 3.0
"""A hub that has not answered for so long is shown as stale."""

ASK_AGAIN_S = 1.0
"""After this long without an answer the next question goes out, in case that one was lost."""

INTERVAL_S = 0.25
"""How often a viewer takes a snapshot, if it is not told otherwise."""

LONGEST_S = 1.0
"""How often a hub is asked at least, so that it knows that somebody is there."""

SSH_INTERVAL_S = 0.5
"""How often a hub on another host is asked at most."""

PATIENCE_S = 0.05
"""How long a snapshot waits for answers that it has asked for."""

TURN_ANSWERS = 64
"""Taken in at a stretch, so that a hub that never stops leaves time to draw."""

NAP_S = 0.25
"""How long it may be away from its runs: new ones, and requests for stacks, wait for it."""

SCAN_S = 0.5
NOTICES = 64
"""Lines that a notice has at most."""


class Follower:
    """Follows one run.

    Args:
        context: Of the sockets.
        place: The run's folder.
        hub_pid: The hub's process.
        keeps_end: Fetch the run's whole state when nothing more can come, so that what becomes of
            the command that started it can still be told of it.
        clock: Seconds.

    Attributes:
        nonsense: What is wrong with what its hub sends, "" as long as that makes sense.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        place: RunDir,
        hub_pid: int,
        *,
        keeps_end: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self.hub_pid = hub_pid
        self.closed = self.done = False
        self.nonsense = ""
        self.end: RunState | None = None
        self._keeps_end = keeps_end
        self._clock = clock
        self._interval_s = SSH_INTERVAL_S if place.ssh_host else 0.0
        self._reader = ViewReader()
        self._heard = clock()
        self._asked = -ASK_AGAIN_S
        self._is_waiting = False
        self._told: Command | None = None
        self._shown: tuple[RunView | None, str, RunView] | None = None
        self.answers = transport.ask_socket(context, place.ask)

    def ask(self) -> None:
        """Asks for the run's view, unless an answer is still to come or one has just come."""
        now = self._clock()
        pause_s = ASK_AGAIN_S if self._is_waiting else self._interval_s
        if self.closed or now - self._asked < pause_s:
            return
        self._asked, self._is_waiting = now, True
        # A stopped hub has many questions before it.
        with contextlib.suppress(zmq.Again):
            number = VIEW_NUMBER.pack(self._reader.number)
            self.answers.send_multipart([VIEW_REQUEST, number], zmq.NOBLOCK)
            if self._keeps_end and self._reader.is_over and self.end is None:
                self.answers.send(STATE_REQUEST, zmq.NOBLOCK)

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is still to come."""
        return self._is_waiting and not self.closed

    def ask_stacks(self, ranks: Sequence[int]) -> None:
        """Asks ranks for their stacks, all if none are named; what comes of it is in the view."""
        if not self.closed:
            with contextlib.suppress(zmq.Again):  # too much has been asked already
                request = [STACKS_REQUEST, encode_request(list(ranks))]
                self.answers.send_multipart(request, zmq.NOBLOCK)

    def tell(self, command: Command) -> None:
        """Says what has become of the command that started the run, once."""
        if command == self._told:
            return
        if self.closed:
            self._told = command
            self._show_command(command)
            return
        with contextlib.suppress(zmq.Again):
            request = [COMMAND_REQUEST, msgspec.msgpack.encode(command)]
            self.answers.send_multipart(request, zmq.NOBLOCK)
            self._told = command

    def _show_command(self, command: Command) -> None:
        """What a hub would make of it that is no more there."""
        found = self._reader.view
        if self.end is not None:
            from dpwatch.run.derive.summarize import view  # what a viewer needs in no other case

            self.end.command = command
            self._reader.view = view(self.end)
        elif found is not None:
            run = msgspec.structs.replace(found.run, command_exit=command.exit)
            self._reader.view = msgspec.structs.replace(found, run=run)

    def poll(self) -> None:
        """Takes in what has come."""
        for _ in range(TURN_ANSWERS):
            if self.closed or (answer := _receive(self.answers)) is None:
                break
            self._take_answer(answer)

    def _take_answer(self, answer: bytes) -> None:
        kind, data = answer[:1], memoryview(answer)[1:]
        try:
            if kind == VIEW:
                self._reader.read(data)
            elif kind == STATE:
                from dpwatch.run.state.encoding import decode

                self.end = decode(data)
            elif kind != SAME:
                raise ValueError("an answer of no known kind")
        # Of another host's hub anything may come, states that contradict themselves too.
        except Exception as error:  # noqa: BLE001
            self.nonsense = f"{type(error).__name__}: {codec.describe_error(error)}"
            self._reader = ViewReader()
        else:
            self.nonsense = ""
            self._is_waiting &= kind == STATE
        self._heard = self._clock()

    @property
    def connection(self) -> str:
        """`live`, `stale` (the hub has fallen silent) or `closed`."""
        if self.closed:
            return "closed"
        return "stale" if self._clock() - self._heard > STALE_S else "live"

    def view(self) -> RunView | None:
        """The run now, None before a rank has spoken."""
        found, connection = self._reader.view, self.connection
        if found is None or not found.run.hosts:
            return None
        # Who draws compares objects: what has not changed has to be the same one.
        if self._shown is None or self._shown[0] is not found or self._shown[1] != connection:
            ssh_host = self.place.ssh_host
            shown = msgspec.structs.replace(found, connection=connection, ssh_host=ssh_host)
            self._shown = found, connection, shown
        return self._shown[2]

    @property
    def earlier(self) -> list[Run]:
        """Runs that are over and whose hub has begun anew with this one since."""
        return self._reader.earlier

    @property
    def complete(self) -> bool:
        """Whether the hub has handed over what it knows."""
        return self._reader.view is not None

    @property
    def is_done(self) -> bool:
        """Whether nothing more can come, and what has is all here."""
        return self._reader.is_over and self.end is not None

    @property
    def is_to_be_replaced(self) -> bool:
        """Whether a hub that is there now is another one."""
        return self.closed and not self.done

    def close(self) -> None:
        """Lets go of the hub; the last view stays."""
        if not self.closed:
            self.closed = True
            self.answers.close()


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
        self._look_at = self._shown_at = self._ask_at = 0.0
        self._shown: set[str] = set()
        self.interval_s = INTERVAL_S
        self.notice = ""
        self.command: Command | None = None
        self._look()

    def next(self, timeout_s: float) -> Snapshot | None:
        """The next snapshot, one every `interval_s`; None when the time is over first.

        One that shows a run for the first time does not wait for its turn.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if now >= self._look_at:
                self._look()
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
        self._look_at = 0.0

    def _look(self) -> None:
        """Looks for new runs, and lets go of hubs that have ended."""
        self._look_at = time.monotonic() + self._scan_s
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
            follower.ask()
        wait_s = min(wait_s, self._look_at - time.monotonic())
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


def _receive(socket: zmq.Socket[bytes]) -> bytes | None:
    try:
        return socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None
