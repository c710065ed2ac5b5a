"""The sender thread: takes what the training thread recorded, encodes it, and sends it.

Everything expensive happens here, and nothing ever waits for it. A frame that cannot be sent is
kept and retried at the next turn; meanwhile records stay in the recorder, which drops its oldest.
Nothing wakes this thread, since waking costs the waker. Instead it polls eight times a second (each
poll takes some 50 µs, and the GIL).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from dpwatch.probe.send.identity import Identity
from dpwatch.probe.send.recorder import Recorder
from dpwatch.wire import codec
from dpwatch.wire.batching import count_records, pack
from dpwatch.wire.messages import (
    PROTOCOL_VERSION,
    AnyRecord,
    Asked,
    Batch,
    Beat,
    Bye,
    Collective,
    Gpu,
    Hello,
    Output,
    Stacks,
    Step,
)

POLL_S = 0.125
STARTUP_POLL_S = 0.05
"""Until the rank is known and a hub has been looked for: a run may end very soon."""

PREDECESSOR_WAIT_S = 3.0
"""How long a run may wait for the last frames of the previous one in the same process."""

IDLE_NS = 100_000_000
"""How long the script must run nothing where it has trained for its training to count as ended,
…"""

LEFT_NS = 1_000_000_000
"""… and how long it must be outside of the process group that it has left."""

WORKER_POLL_S = 0.03
"""In the first seconds of a pool worker, which may be killed as soon as its task ends."""

FRAME_NS = 250_000_000
"""A frame is sent this long after the previous one, or earlier if much is waiting; …"""

STARTUP_NS = 10_000_000_000
"""… for this long after the first frame, at every turn: runs that fail early often fail at once,
and what was not sent is lost when a process aborts. And …"""

MANY_RANKS, MANY_FRAME_NS = 64, 500_000_000
CROWD_RANKS, CROWD_FRAME_NS = 512, 1_000_000_000
"""… always at these longer intervals in runs with more ranks than this, so that their hub has fewer
frames to handle."""

HELLO_NS = 2_000_000_000
BEAT_NS = 500_000_000
GPU_NS = 1_000_000_000
IDENTITY_NS = 1_000_000_000
RANK_PATIENCE_NS = 30_000_000_000
"""How long a process that has not finished a step may take to learn its rank before it counts as
rank 0 of its own run. If it joins another run later, it switches to that."""

FRAMES_PER_POLL = 32

PACK_RANKS = 32
MOST_PACKED = 512
FLUSH_ROWS = 1024
"""In runs of more than `PACK_RANKS` ranks, a frame takes about `MOST_PACKED` records; when
`FLUSH_ROWS` wait, it is sent at once. In smaller runs it is sent at once when full."""


class Link(Protocol):
    """Where frames go. Used on the sender thread only.

    Attributes:
        hub_seen: Whether a hub has been running.
    """

    hub_seen: bool

    @property
    def patience_s(self) -> float:
        """How long the last frames may wait for the hub."""

    def open(self, run_id: str, local_rank: int) -> None:
        """Called before the first frame."""

    def send(self, frame: bytes) -> bool:
        """Sends without blocking. Returns: False if the frame cannot be taken now."""

    def ensure_hub(self, now_ns: int) -> None:
        """Called at every turn: starts a hub if there is none."""

    def stack_request(self) -> Asked | None:
        """The request for stacks, if there is a new one since the last call."""

    def close(self) -> None:
        """Lets sent frames go out, for at most two seconds; it may be opened again."""

    def send_after_close(self, frame: bytes) -> None:
        """Sends one more frame after `close`, if the hub is still running."""


class Source(Protocol):
    """What the publisher asks of the probe, on the sender thread."""

    def identify(self) -> Identity:
        """This process's identity, as far as it is known now."""

    def group(self) -> int:
        """Identifies the current default process group, 0 for none; cheap."""

    def has_stepped(self) -> bool:
        """Whether a first step has ended."""

    def is_idle(self) -> bool:
        """Whether the script no longer runs anything where it has trained."""

    def has_left_group(self) -> bool:
        """Whether this process is in no process group, and is not about to join one."""

    def on_idle(self) -> None:
        """The hub has been told that training ended; nothing is sent until there is more."""

    def failure(self) -> Bye | None:
        """What has ended the script, if the process goes on because other threads keep it alive."""

    def hello(self, me: Identity) -> Hello:
        """This rank's `Hello`."""

    def complete(self, step: Step) -> Step:
        """Adds to a step's record, as it is sent, what is known by then."""

    def beat(self) -> Beat:
        """A heartbeat: what it does right now."""

    def stacks(self, asked: int) -> Stacks | None:
        """The stacks of its threads, None if they cannot be read."""

    def gpus(self) -> list[Gpu]:
        """Readings of its GPUs, empty without any."""

    def read_durations(self, now_ns: int) -> None:
        """Records how long collectives took, if reading that is possible and due."""

    def output(self, *, last: bool = False) -> list[Output]:
        """What it has printed since; `last`: everything left, as nobody will ask again."""


class Publisher:
    """Sends a recorder's records over a link.

    `start` runs it in a thread; a test may call `poll` instead, with its own time.

    Args:
        run_id: Returns the run's id for a known identity.
        trouble: Called once with the reason if nothing can be sent any more.
        before: The publisher of this process's previous run.

    Attributes:
        paused: Training has ended or the process group was left, and nothing is sent until there is
            more to send.
        task_over: Training has ended because its function has returned.
    """

    def __init__(
        self,
        recorder: Recorder,
        source: Source,
        link: Link,
        *,
        run_id: Callable[[Identity], str],
        host: str,
        trouble: Callable[[BaseException], None],
        before: Publisher | None = None,
        wall: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._recorder = recorder
        self._source = source
        self._link = link
        self._name = run_id
        self._run_id = ""
        self._before = before
        self.paused = self.task_over = False
        self._host = host
        self._trouble = trouble
        self._wall = wall
        self._pid = os.getpid()
        self._me: Identity | None = None
        self._seen = Identity(rank=0, world_size=1, local_rank=0, known=False)
        self._group, self._next_look = -1, 0
        self._hello: Hello | None = None
        self._next_frame = self._next_hello = self._next_beat = self._next_gpu = 0
        self._first_asked_ns: int | None = None
        self._startup_until = 0
        self._unsent: bytes | None = None
        self._overflow: list[AnyRecord] = []
        self._seq = self._sent = 0
        self._lost = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._bye: Bye | None = None
        self._failed = False
        self._idle = self._reported_idle = False
        self._idle_since: int | None = None

    def start(self) -> None:
        """Starts the thread, a daemon: it never keeps a process alive."""
        self._thread = threading.Thread(target=self._run, name="dpwatch-sender", daemon=True)
        self._thread.start()

    def close(self, bye: Bye, timeout_s: float = 2.5) -> None:
        """Sends what is left and `bye`; gives up after `timeout_s`.

        If the process goes on, for instance with a pool's next task, the caller does not wait for
        that.
        """
        self._bye = bye
        self._stop.set()
        if bye.then != "idle":
            self.wait(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Waits for the thread to end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def dropped(self) -> int:
        """Records dropped so far."""
        return self._recorder.dropped + self._lost

    @property
    def _pause_s(self) -> float:
        if self._me is None:
            return STARTUP_POLL_S
        is_worker = self._hello is not None and self._hello.worker and self._link.hub_seen
        return WORKER_POLL_S if is_worker and self._wall() < self._startup_until else POLL_S

    @property
    def _full(self) -> int:
        """Number of waiting records from which on a frame is sent at once."""
        if self._is_small:
            return codec.MAX_RECORDS
        return min(FLUSH_ROWS, self._recorder.capacity // 2)

    @property
    def _is_small(self) -> bool:
        return self._hello is None or self._hello.world_size <= PACK_RANKS

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s):
                self.poll(self._wall())
            self.finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on without the probe
            self._trouble(error)
        finally:
            self._link.close()

    def poll(self, now_ns: int) -> None:
        """One turn: sends what there is, as far as the link takes it."""
        if self._me is None and not self._learn_rank(now_ns):
            return
        self._refresh_identity(now_ns)
        self._follow_identity()
        if self.paused and not self._resume_if_active():
            return
        if self._update_idle(now_ns):
            self._next_frame = self._next_beat = 0  # the process may end soon
        if now_ns < self._next_frame and len(self._recorder) < self._full:
            return
        self._link.ensure_hub(now_ns)
        if not self._flush_unsent() or self._pause_when_idle():
            return
        due = self._due(now_ns)
        self._startup_until = self._startup_until or now_ns + STARTUP_NS
        if now_ns >= self._startup_until or not self._is_small:
            self._next_frame = now_ns + _frame_interval_ns(
                self._hello.world_size if self._hello else 1
            )
        for _ in range(FRAMES_PER_POLL):
            records = self._drain(codec.MAX_RECORDS - len(due))
            if not due and not records:
                return
            if not self._send([*due, *records]):
                return
            due = []
            if self._pause_when_idle():
                return

    def finish(self) -> None:
        """The last turn: sends everything left, and the `Bye`."""
        said = [] if self._bye is None else self._source.output(last=True)
        if self.paused and self._bye is not None and not self._is_news(self._bye, said):
            return
        me = self._refresh_identity(self._wall(), anew=True)
        if self._me is None or self.paused:
            self._set_identity(self._me or me)
            self._link.ensure_hub(self._wall())  # no hub has been looked for yet
        self._follow_identity()
        self._await_link()
        self._send_remaining()
        if self._bye is None:
            return
        # It sums up the records before it; making it may also record the completion of calls in
        # progress, which is sent too.
        beat = self._source.beat()
        self._send_remaining()
        # Even if the link took nothing: dropping this frame costs no more than not making it.
        if self._flush_unsent():
            self._send([self._make_hello(), beat, *said, self._bye])

    def _send_remaining(self) -> None:
        """Sends all waiting records, as far as the link takes them."""
        while self._flush_unsent() and (self._overflow or len(self._recorder)):
            records = self._drain(codec.MAX_RECORDS - 1)
            if records:
                self._send([self._make_hello(), *records] if self._seq == 0 else records)

    def _is_news(self, bye: Bye, said: Sequence[Output]) -> bool:
        """Whether this says more than the goodbye that was sent when training ended.

        The hub sees for itself how the process ends.
        """
        if bye.then == "idle":
            return False
        return bye.state != "finished" or bool(said) or len(self._recorder) > 0

    def _await_link(self) -> None:
        """Gives a hub that may still be starting time to take what is waiting."""
        deadline = time.monotonic() + self._link.patience_s
        while not self._flush_unsent() and time.monotonic() < deadline:
            time.sleep(STARTUP_POLL_S)

    # -- what to send -------------------------------------------------------------------------

    def _learn_rank(self, now_ns: int) -> bool:
        me = self._refresh_identity(now_ns, anew=True)
        if self._first_asked_ns is None:
            self._first_asked_ns = now_ns
        waited = now_ns - self._first_asked_ns >= RANK_PATIENCE_NS
        if not (me.known or waited or self._source.has_stepped()):
            return False
        self._set_identity(me)
        return True

    def _set_identity(self, me: Identity) -> None:
        if self._before is not None:
            self._before.wait(PREDECESSOR_WAIT_S)  # its last frames must precede our first
            self._before.announce_next_run()
            self._before = None
        self._me = me
        self._run_id = self._name(me)
        self._link.open(self._run_id, me.local_rank)

    def announce_next_run(self) -> None:
        """Tells the hub of a finished run that the process now belongs to another run.

        Called by the publisher of this process's next run, on its thread.
        """
        if self._bye is not None and self._bye.then == "" and self._me is not None:
            frame = self._frame([msgspec.structs.replace(self._bye, then="next")])
            if frame is not None:
                self._link.send_after_close(frame)

    def _refresh_identity(self, now_ns: int, *, anew: bool = False) -> Identity:
        """This process's identity; queried when its group changes, and at intervals.

        At intervals because it may be waiting for the other ranks of a group, and is in none yet.
        """
        group = self._source.group()
        if anew or group != self._group or now_ns >= self._next_look:
            self._seen, self._group = self._source.identify(), group
            self._next_look = now_ns + IDENTITY_NS
        return self._seen

    def _follow_identity(self) -> None:
        """Switches to the run of a process group that this process has joined meanwhile."""
        if not self._is_other_run(self._seen):
            return
        if self._seq and not self.paused:
            self._send([Bye("finished", "", None, "next")])
        self._link.close()
        self.paused = self._idle = self._reported_idle = False
        self._unsent = self._hello = None
        self._seq = self._sent = 0
        self._next_frame = self._next_hello = self._next_beat = 0
        self._set_identity(self._seen)

    def _is_other_run(self, me: Identity) -> bool:
        """Whether that is a rank of a larger run, while this process was alone in its own."""
        alone = self._me is not None and self._me.world_size == 1
        return alone and me.known and me.world_size > 1 and self._name(me) != self._run_id

    def _update_idle(self, now_ns: int) -> bool:
        """Whether training has ended although the process goes on.

        Either its function has returned (a pool worker waits for the next task; Ray kills its
        workers a second later), or it has left its process group in good order and nothing has been
        recorded since.
        """
        self.task_over = self._source.is_idle()
        was_in = bool(self._me and self._me.backend)
        left = was_in and not self._source.group() and self._source.has_left_group()
        if len(self._recorder) or not (self.task_over or left):
            self._idle, self._idle_since = False, None
            return False
        if self._idle_since is None:
            self._idle_since = now_ns
        patience_ns = IDLE_NS if self.task_over else LEFT_NS
        self._idle = now_ns - self._idle_since >= patience_ns
        return self._idle

    def _pause_when_idle(self) -> bool:
        """Closes the link, once the hub has been told that training ended."""
        if self._reported_idle:
            self._link.close()
            self.paused, self._reported_idle, self._idle_since = True, False, None
            if self.task_over:
                self._source.on_idle()
        return self.paused

    def _resume_if_active(self) -> bool:
        """Whether the same training goes on after all."""
        if not len(self._recorder) or self._me is None:
            return False
        self.paused, self._next_hello = False, 0
        self._link.open(self._run_id, self._me.local_rank)
        return True

    def _due(self, now_ns: int) -> list[AnyRecord]:
        due: list[AnyRecord] = []
        if self._hello is None or now_ns >= self._next_hello:
            due.append(self._make_hello())
            self._next_hello = now_ns + HELLO_NS
        if now_ns >= self._next_beat:
            due.append(self._source.beat())
            self._next_beat = now_ns + BEAT_NS
            fresh = self._source.hello(self._identity())
            if fresh != self._hello:
                self._hello = fresh
                due.insert(0, fresh)
            due.extend(self._stack_answers())
            if not self._failed and (failure := self._source.failure()) is not None:
                self._failed = True
                due.append(failure)
            elif self._idle:
                self._reported_idle = True
                due.append(Bye("finished", "", None, "idle"))
        if now_ns >= self._next_gpu:
            due.extend(self._source.gpus())
            self._source.read_durations(now_ns)
            self._next_gpu = now_ns + GPU_NS
        due.extend(self._source.output())
        return due

    def _stack_answers(self) -> list[Stacks]:
        asked = self._link.stack_request()
        if asked is None or (asked.ranks and self._identity().rank not in asked.ranks):
            return []
        answer = self._source.stacks(asked.number)
        return [] if answer is None else [answer]

    def _make_hello(self) -> Hello:
        self._hello = self._source.hello(self._identity())
        return self._hello

    def _identity(self) -> Identity:
        fresh = self._seen
        if self._me is not None and self._is_other_run(fresh):
            return self._me  # the next turn switches to it
        # A process group that is being destroyed doesn't take the rank away again.
        if self._me is None or fresh.backend or not self._me.backend:
            self._me = fresh
        return self._me

    def _drain(self, most: int) -> list[AnyRecord]:
        """Up to `most` records for a frame.

        In a run of many ranks, collectives and steps are packed. That saves the hub most of its
        time, and costs this thread some 2 µs per record; with few ranks neither matters, so it is
        skipped.
        """
        if self._is_small:
            rows = self._recorder.drain(most)
            return [record for row in rows if (record := self._struct(row)) is not None]
        waiting: list[AnyRecord] = []
        others = 0
        while len(waiting) < MOST_PACKED:
            rows = self._recorder.drain(most - len(self._overflow) - others)
            for row in rows:
                record = self._struct(row)
                if record is not None:
                    waiting.append(record)
                    others += not isinstance(record, Collective | Step)
            if not rows:
                break
        # If too many do not pack, some wait for the next frame.
        found = [*self._overflow, *pack(waiting)]
        self._overflow = found[most:]
        return found[:most]

    def _struct(self, row: tuple[Any, ...]) -> AnyRecord | None:
        try:
            record: AnyRecord = row[0](*row[1:])
        except TypeError:  # one malformed record must not cost the others
            self._lost += 1
            return None
        return self._source.complete(record) if isinstance(record, Step) else record

    # -- sending ------------------------------------------------------------------------------

    def _send(self, records: list[AnyRecord]) -> bool:
        frame = self._frame(records)
        if frame is not None and not self._link.send(frame):
            self._unsent = frame
            return False
        return True

    def _flush_unsent(self) -> bool:
        if self._unsent is not None:
            if not self._link.send(self._unsent):
                return False
            self._unsent = None
        return True

    def _frame(self, records: list[AnyRecord]) -> bytes | None:
        batch = Batch(
            version=PROTOCOL_VERSION,
            run_id=self._run_id,
            rank=self._me.rank if self._me is not None else 0,
            host=self._host,
            pid=self._pid,
            seq=self._seq,
            dropped=self.dropped,
            mono_ns=time.monotonic_ns(),
            wall_ns=time.time_ns(),
            records=records,
            sent=self._sent,
        )
        try:
            frame = codec.encode(batch)
        except (msgspec.MsgspecError, TypeError, OverflowError, UnicodeEncodeError):
            self._lost += count_records(records)
            return None
        self._seq += 1
        self._sent += count_records(records)
        return frame


def _frame_interval_ns(ranks: int) -> int:
    if ranks > CROWD_RANKS:
        return CROWD_FRAME_NS
    return MANY_FRAME_NS if ranks > MANY_RANKS else FRAME_NS
