"""A viewer's end: following runs, and taking a frozen snapshot of all of them.

`Follower` keeps one run's state equal to its hub's: it subscribes, asks for the whole state, then
applies the numbered frames that come after it; a gap makes it ask again. `Watcher` finds runs and
follows them all. Both live on one thread; nothing a viewer does can reach a rank.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
import zmq

from dpwatch.run.derive import run_views
from dpwatch.run.derive.summarize import MANY, summarize, view
from dpwatch.run.derive.titles import told_apart
from dpwatch.run.derive.verdict import ended
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.model.snapshot import History, HostGpu, Run, RunView, Snapshot
from dpwatch.run.state.encoding import decode
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime.paths import RunDir
from dpwatch.runtime.stack_request import STACKS_REQUEST, encode_request
from dpwatch.viewer.local_runs import LocalRuns
from dpwatch.wire import codec, transport
from dpwatch.wire.messages import PROTOCOL_VERSION, Command
from dpwatch.wire.viewer_messages import (
    COMMAND_REQUEST,
    EVERY_FRAME,
    FRAME_NUMBER,
    LOOK,
    LOOK_REQUEST,
    NO_FRAME,
    SAME,
    STATE,
)

STALE_S = 3.0
"""A hub ticks every second; silent for this long, it is shown as stale."""

ASK_AGAIN_S = 1.0
INTERVAL_S = 0.25
"""How often a viewer takes a snapshot, if it is not told otherwise."""

CURVES_S = 1.0
"""How old a running run's curves may be."""

TURN_FRAMES = 1024
"""Frames taken in at a stretch, so that a hub that never stops leaves time to draw."""

NAP_S = 0.25
"""How long frames may lie in their sockets, which hold a thousand each."""

SCAN_S = 0.5
NOTICES = 64
"""Lines that a notice has at most."""


class Follower:
    """Follows one run.

    Attributes:
        nonsense: What is wrong with what its hub sends, "" as long as that makes sense.
        protocol: The version that its frames have.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        place: RunDir,
        hub_pid: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self.hub_pid = hub_pid
        self.state: RunState | None = None
        self.closed = self.done = False
        self.nonsense = ""
        self.protocol = PROTOCOL_VERSION
        self._clock = clock
        self._heard = clock()
        self._asked: float | None = None
        self._told: Command | None = None
        self._view: RunView | None = None
        self._look: run_views.Look | None = None
        self._view_ends = math.inf  # when it is to be made anew, though nothing has come
        self._reviewed: tuple[float, Run] | None = None
        self._curves = (-CURVES_S, History())
        self.frames = transport.subscribe_socket(context, place.publish)
        self.answers = transport.ask_socket(context, place.ask)
        self._ask()

    def _ask(self) -> None:
        self._asked = self._clock()
        seen = [] if self._look is None else [FRAME_NUMBER.pack(self._look.number)]
        with contextlib.suppress(zmq.Again):  # a stopped hub has many questions before it
            self.answers.send_multipart([LOOK_REQUEST, *seen], zmq.NOBLOCK)

    def ask_stacks(self, ranks: Sequence[int]) -> None:
        """Asks ranks for their stacks, all if none are named; what comes of it is in the view."""
        if not self.closed:
            with contextlib.suppress(zmq.Again):  # too much has been asked already
                request = [STACKS_REQUEST, encode_request(list(ranks))]
                self.answers.send_multipart(request, zmq.NOBLOCK)

    def tell(self, command: Command) -> None:
        """Says what has become of the command that started the run, once."""
        if self.closed:
            if self.state is not None and self.state.command != command:
                self.state.command, self._view = command, None
            return
        if command == self._told:
            return
        with contextlib.suppress(zmq.Again):
            request = [COMMAND_REQUEST, msgspec.msgpack.encode(command)]
            self.answers.send_multipart(request, zmq.NOBLOCK)
            self._told = command

    def poll(self) -> None:
        """Takes in all that has come."""
        if self.closed:
            return
        # The answer first: frames that came before it are older than it and fall away.
        while (answer := _receive(self.answers)) is not None:
            self._take_answer(answer)
        for _ in range(TURN_FRAMES):
            if (frame := _receive(self.frames)) is None:
                break
            self._take_frame(frame)
        if self._asked is not None and self._clock() - self._asked > self._patience_s:
            self._ask()

    @property
    def _patience_s(self) -> float:
        """How long after a question the next one comes, as long as there is any to ask."""
        answered = self._asked is not None and self._heard >= self._asked
        return INTERVAL_S if self._look is not None and answered else ASK_AGAIN_S

    def _take_answer(self, answer: bytes) -> None:
        kind, data = answer[:1], memoryview(answer)[1:]
        try:
            if kind == STATE:
                self._take_state(decode(data))
            elif kind == LOOK:
                self._take_look(run_views.decode(data))
            elif kind == SAME:
                self._heard = self._clock()
            else:
                raise ValueError("an answer of no known kind")
        # Of another host's hub anything may come, states that contradict themselves too.
        except Exception as error:  # noqa: BLE001
            self._distrust(error)

    def _take_state(self, state: RunState) -> None:
        shown = view(state)
        if self._look is not None:  # too many ranks have become fewer: another hub's
            self._follow_frames(on=True)
            self._look = None
        if self.state is None or state.frames >= self.state.frames:
            self.state = state
        self._asked = None
        self._fresh()
        self._reviewed = None
        if self.state is state:
            self._view = shown

    def _take_look(self, look: run_views.Look) -> None:
        """From now on asks for the next look, frame by frame of the screen."""
        if self._look is None:
            self._follow_frames(on=False)
        self._look, self.state = look, None
        self._fresh()

    def _follow_frames(self, *, on: bool) -> None:
        self.frames.setsockopt(zmq.SUBSCRIBE, EVERY_FRAME if on else NO_FRAME)
        self.frames.setsockopt(zmq.UNSUBSCRIBE, NO_FRAME if on else EVERY_FRAME)

    def _take_frame(self, frame: bytes) -> None:
        self._heard = self._clock()
        if self.state is None or len(frame) < FRAME_NUMBER.size:
            return
        (number,) = FRAME_NUMBER.unpack_from(frame)
        if number <= self.state.frames:
            return
        if number > self.state.frames + 1:
            if self._asked is None:
                self._ask()
            return
        try:
            reviewed = advance(self.state, codec.decode(frame[FRAME_NUMBER.size :]))
        except codec.VersionError as error:
            self.protocol = error.version
            return
        except codec.WireError:
            return
        except Exception as error:  # noqa: BLE001
            self._distrust(error)
            return
        if len(self.state.ranks) > MANY and self._asked is None:
            self._ask()
        self._fresh()
        if reviewed is not None:
            self._reviewed = (self._heard, reviewed)

    def _distrust(self, error: Exception) -> None:
        """Lets go of a state that can't be, and waits before asking for another one."""
        self.nonsense = f"{type(error).__name__}: {codec.describe_error(error)}"
        self.state = self._view = self._reviewed = None
        if self._look is not None:
            self._follow_frames(on=True)
            self._look = None
        self._asked = self._clock()

    def _fresh(self) -> None:
        self._heard = self._clock()
        self._view = None
        self.nonsense = ""

    @property
    def connection(self) -> str:
        """`live`, `stale` (the hub has fallen silent) or `closed`."""
        if self.closed:
            return "closed"
        return "stale" if self._clock() - self._heard > STALE_S else "live"

    def view(self) -> RunView | None:
        """The run now, None before its state has come and a rank has spoken."""
        if not self.complete or (self.state is not None and not self.state.ranks):
            return None
        connection = self.connection
        ends = self._clock() >= self._view_ends
        if self._view is None or self._view.connection != connection or ends:
            if self._look is not None:
                self._view_ends = math.inf
                self._view = msgspec.structs.replace(self._look.view, connection=connection)
            elif self.state is not None:
                try:
                    self._view = self._viewed(self.state, connection)
                except Exception as error:  # noqa: BLE001
                    self._distrust(error)
            if self._view is not None and self.place.ssh_host:
                self._view = msgspec.structs.replace(self._view, ssh_host=self.place.ssh_host)
        return self._view

    def _viewed(self, state: RunState, connection: str) -> RunView:
        """The state to look at; of a run that goes on, with curves that are a second old at most.

        A curve of hundreds of points looks the same then, and to draw it costs more than the rest.
        """
        now, self._view_ends = self._clock(), math.inf
        run = self._just_reviewed(now) if connection == "live" else None
        self._reviewed = None
        if run is None:
            run = summarize(state)
        else:
            self._view_ends = now  # of what came since nothing is in it: good for one look
        at, curves = self._curves
        young = now - at < CURVES_S and len(curves.rank_step_ms) == len(run.ranks)
        if young and connection == "live" and run.state == "running":
            self._view_ends = min(self._view_ends, at + CURVES_S)
            return view(state, connection, run, history=curves)
        found = view(state, connection, run)
        self._curves = (now, found.history)
        return found

    def _just_reviewed(self, now: float) -> Run | None:
        """A running run's summary that a review made a moment ago."""
        at, run = self._reviewed or (-math.inf, None)
        fresh = run is not None and run.state == "running" and now - at <= INTERVAL_S
        return run if fresh else None

    @property
    def complete(self) -> bool:
        """Whether the hub has handed over what it knows."""
        return self.state is not None or self._look is not None

    @property
    def is_done(self) -> bool:
        """Whether nothing more can come: it was a single process's run, whose exit is known."""
        state = self.state
        if state is None or state.world_size > 1 or not ended(state):
            return False
        return all(rank.bye and rank.bye.exit is not None for rank in state.ranks.values())

    @property
    def is_to_be_replaced(self) -> bool:
        """Whether a hub that is there now is another one."""
        return self.closed and not self.done

    def close(self) -> None:
        """Lets go of the hub; the last state stays."""
        if not self.closed:
            self.closed = True
            self.frames.close()
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
        self._look_at = self._shown_at = 0.0
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
            self._pump(min(deadline, self._shown_at + self.interval_s) - now)
            now = time.monotonic()
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
        told += [
            other_protocol(f.place, f.protocol)
            for f in self._followers.values()
            if f.protocol != PROTOCOL_VERSION and not f.closed
        ][:1]
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
        states = [follower.state for follower in self._followers.values()]
        return [run for state in states if state is not None for run in state.earlier]

    @property
    def complete(self) -> bool:
        """Whether every run found has handed over its state."""
        if isinstance(self._places, LocalRuns) and self._places.awaits:
            return False
        return all(
            f.complete or f.nonsense or f.closed or f.protocol != PROTOCOL_VERSION
            for f in self._followers.values()
        )

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
        follower = Follower(self._context, place, hub_pid)
        self._poller.register(follower.frames, zmq.POLLIN)
        self._poller.register(follower.answers, zmq.POLLIN)
        return follower

    def _drop(self, follower: Follower) -> None:
        if not follower.closed:
            follower.poll()
            self._poller.unregister(follower.frames)
            self._poller.unregister(follower.answers)
            follower.close()

    def _pump(self, wait_s: float) -> None:
        while self._to_ask:
            run_id, ranks = self._to_ask.popleft()
            for follower in self._followers.values():
                if follower.place.run_id == run_id:
                    follower.ask_stacks(ranks)
        if self.complete:
            # Nobody waits for a single frame, and to wake up for each costs more than to take it.
            time.sleep(min(max(wait_s, 0), NAP_S))
        else:
            wait_s = min(wait_s, self._look_at - time.monotonic())
            self._poller.poll(max(0, int(wait_s * 1e3)))
        for follower in self._followers.values():
            if self.command is not None:
                follower.tell(self.command)
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
