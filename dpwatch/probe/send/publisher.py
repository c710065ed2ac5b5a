"""The sender thread: takes what the training thread recorded, encodes it, sends it.

All that costs time happens here, and nothing here is ever waited for. A frame that can't go out
is kept and tried again at the next turn; meanwhile records stay in the recorder, which drops its
oldest. Nothing wakes this thread: waking costs the waker, so it looks by itself, eight times a
second (each look takes some 50 µs, and the GIL).
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
"""Until the rank is known and the hub looked for: a run may be over in no time."""

PREDECESSOR_WAIT_S = 3.0
"""How long a run may wait for the last frames of the one before in the same process."""

IDLE_NS = 100_000_000
"""How long nothing of the script's may run where it has trained, for its training to be over, …"""

LEFT_NS = 1_000_000_000
"""… and how long it may be without the process group that it has left."""

WORKER_POLL_S = 0.03
"""In the first seconds of a pool's worker, which may be ended as soon as its task is over."""

FRAME_NS = 250_000_000
"""A frame goes out this long after the one before, or when much waits; …"""

STARTUP_NS = 10_000_000_000
"""… For so long after the first frame, at every turn: runs that fail early often do so at once, and
what was not sent is lost with an aborted process. And …"""

MANY_RANKS, MANY_FRAME_NS = 64, 500_000_000
CROWD_RANKS, CROWD_FRAME_NS = 512, 1_000_000_000
"""… in a run of more ranks than these always so long: its hub has fewer frames to take in."""

HELLO_NS = 2_000_000_000
BEAT_NS = 500_000_000
GPU_NS = 1_000_000_000
IDENTITY_NS = 1_000_000_000
RANK_PATIENCE_NS = 30_000_000_000
"""How long a process that has not done a step may take to learn its rank before it counts as rank 0
of its own run. It goes over to another if it joins that later."""

FRAMES_PER_POLL = 32

PACK_RANKS = 32
MOST_PACKED = 512
FLUSH_ROWS = 1024
"""Of runs of more ranks a frame takes so many records or a few more; when so many wait it goes out
at once. Of others it does when it is full."""


class Link(Protocol):
    """Where frames go. Used on the sender thread only.

    Attributes:
        hub_seen: The other end has been seen.
    """

    hub_seen: bool

    @property
    def patience_s(self) -> float:
        """How long the last frames may wait for the other end."""

    def open(self, run_id: str, local_rank: int) -> None:
        """Before the first frame."""

    def send(self, frame: bytes) -> bool:
        """Sends without waiting. Returns: False if the frame could not be taken now."""

    def ensure_hub(self, now_ns: int) -> None:
        """At every turn: looks after the other end."""

    def stack_request(self) -> Asked | None:
        """Who is to tell their stacks, if somebody has asked since the last call."""

    def close(self) -> None:
        """Lets what was sent go out, for two seconds at most; it may be opened again."""

    def send_after_close(self, frame: bytes) -> None:
        """Sends one more frame when closed, where the other end is still there."""


class Source(Protocol):
    """What the publisher asks of the probe, on the sender thread."""

    def identify(self) -> Identity:
        """Who this process is, as far as is known now."""

    def group(self) -> int:
        """Which default process group there is now, 0 for none; quickly told."""

    def has_stepped(self) -> bool:
        """Whether a first step is over."""

    def is_idle(self) -> bool:
        """Whether nothing of the script's runs any more where it has trained."""

    def has_left_group(self) -> bool:
        """Whether this process is in no process group, and is not about to join one."""

    def on_idle(self) -> None:
        """Hears that the hub has been told so, and nothing is sent until there is more."""

    def failure(self) -> Bye | None:
        """What has ended the script, though the process goes on: other threads may keep it."""

    def hello(self, me: Identity) -> Hello:
        """Who this rank is, for the hub."""

    def complete(self, step: Step) -> Step:
        """A step's record as it leaves, with what is known by then."""

    def beat(self) -> Beat:
        """What it does right now."""

    def stacks(self, asked: int) -> Stacks | None:
        """Where its threads are, None if that can't be told."""

    def gpus(self) -> list[Gpu]:
        """Its GPUs, none if there are none."""

    def read_durations(self, now_ns: int) -> None:
        """Records how long collectives took, where that is to be read and due."""

    def output(self, *, last: bool = False) -> list[Output]:
        """What it has printed since; `last`: all that there is, for nobody will ask again."""


class Publisher:
    """Sends a recorder's records over a link.

    `start` runs it in a thread; a test may call `poll` instead, with a time of its own.

    Args:
        run_id: Names the run, once it is known who this process is.
        trouble: Told, once, that nothing can be sent any more, and why.
        before: The publisher of the run that this process has ended before it began this one.

    Attributes:
        paused: The training function is over, or the process group has been left, and nothing is
            sent until there is more to tell.
        task_over: It is the training function.
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

        What goes on in the same process, such as a pool's next task, is not made to wait for that.
        """
        self._bye = bye
        self._stop.set()
        if bye.then != "idle":
            self.wait(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Waits for the thread's end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def dropped(self) -> int:
        """Records thrown away so far."""
        return self._recorder.dropped + self._lost

    @property
    def _pause_s(self) -> float:
        if self._me is None:
            return STARTUP_POLL_S
        is_worker = self._hello is not None and self._hello.worker and self._link.hub_seen
        return WORKER_POLL_S if is_worker and self._wall() < self._startup_until else POLL_S

    @property
    def _full(self) -> int:
        """Records that do not wait for the next frame's time."""
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
        except Exception as error:  # noqa: BLE001 - whatever it was, training goes on without us
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
            self._next_frame = self._next_beat = 0  # it may not live for long
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
        """The last turn: all that is left, and the Bye."""
        said = [] if self._bye is None else self._source.output(last=True)
        if self.paused and self._bye is not None and not self._is_news(self._bye, said):
            return
        me = self._refresh_identity(self._wall(), anew=True)
        if self._me is None or self.paused:
            self._set_identity(self._me or me)
            self._link.ensure_hub(self._wall())  # nobody has looked for a hub yet
        self._follow_identity()
        self._await_link()
        self._send_remaining()
        if self._bye is None:
            return
        # It tells what the records before have come to; and who is asked for it may record how
        # calls under way have ended, which goes too.
        beat = self._source.beat()
        self._send_remaining()
        # Even when the link took nothing: dropping this frame costs no more than not making it.
        if self._flush_unsent():
            self._send([self._make_hello(), beat, *said, self._bye])

    def _send_remaining(self) -> None:
        """All records that wait, as far as the link takes them."""
        while self._flush_unsent() and (self._overflow or len(self._recorder)):
            records = self._drain(codec.MAX_RECORDS - 1)
            if records:
                self._send([self._make_hello(), *records] if self._seq == 0 else records)

    def _is_news(self, bye: Bye, said: Sequence[Output]) -> bool:
        """Whether it is more than the goodbye that was said when the training was over.

        How the process ends, the hub sees for itself.
        """
        if bye.then == "idle":
            return False
        return bye.state != "finished" or bool(said) or len(self._recorder) > 0

    def _await_link(self) -> None:
        """Gives a hub that may still be starting the time to take what waits."""
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
            self._before.wait(PREDECESSOR_WAIT_S)  # else its last frames might come after our first
            self._before.announce_next_run()
            self._before = None
        self._me = me
        self._run_id = self._name(me)
        self._link.open(self._run_id, me.local_rank)

    def announce_next_run(self) -> None:
        """Says of a run that is over that what becomes of the process now is not its own any more.

        Called by the publisher of this process's next run, on its thread.
        """
        if self._bye is not None and self._bye.then == "" and self._me is not None:
            frame = self._frame([msgspec.structs.replace(self._bye, then="next")])
            if frame is not None:
                self._link.send_after_close(frame)

    def _refresh_identity(self, now_ns: int, *, anew: bool = False) -> Identity:
        """Who this process is: asked for when its group is another, and now and then.

        Now and then, as it may wait for the others of a group, and is in none yet.
        """
        group = self._source.group()
        if anew or group != self._group or now_ns >= self._next_look:
            self._seen, self._group = self._source.identify(), group
            self._next_look = now_ns + IDENTITY_NS
        return self._seen

    def _follow_identity(self) -> None:
        """Goes over to the run of a process group that this process has joined meanwhile."""
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
        """Whether that is a rank of a run, where this process was alone in its own."""
        alone = self._me is not None and self._me.world_size == 1
        return alone and me.known and me.world_size > 1 and self._name(me) != self._run_id

    def _update_idle(self, now_ns: int) -> bool:
        """Whether the training is over though the process goes on.

        Its function has ended (a pool's worker waits for the next; Ray kills its workers a second
        later), or it has left its process group in good order and nothing has come since.
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
        """Lets go of the hub, once it has been told that the training is over."""
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
            return self._me  # the next turn goes there
        # A process group that is being destroyed doesn't take the rank away again.
        if self._me is None or fresh.backend or not self._me.backend:
            self._me = fresh
        return self._me

    def _drain(self, most: int) -> list[AnyRecord]:
        """Up to so many records for a frame.

        In a run of many ranks collectives and steps go as few records. That saves their hub most of
        its time, and costs this thread some 2 µs each: with few ranks neither matters, and it is
        left out.
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
        # Where they differ so much that they do not go as few, some wait for another frame.
        found = [*self._overflow, *pack(waiting)]
        self._overflow = found[most:]
        return found[:most]

    def _struct(self, row: tuple[Any, ...]) -> AnyRecord | None:
        try:
            record: AnyRecord = row[0](*row[1:])
        except TypeError:  # a record its maker got wrong must not cost the others
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
