"""The hub: one process per host and run, between ranks that never wait and viewers.

It has one thread with one poll loop. Frames of ranks are applied to the state; on a node they are
numbered and forwarded to the head. Viewers ask for views. The hub ticks once a second, records the
end of processes that exit without reporting, and exits once nobody needs it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import msgspec
import zmq

from dpwatch.hub import last
from dpwatch.hub.checkpoint import Checkpoint
from dpwatch.hub.cluster.membership import Membership
from dpwatch.hub.cluster.merge import merge
from dpwatch.hub.endpoints import Endpoints
from dpwatch.hub.last_steps import LastSteps
from dpwatch.hub.processes import Processes, exit_of, runs, state_of
from dpwatch.hub.resource_guard import CHECK_S, Guard, RateLimitedLog, allow_files
from dpwatch.hub.stack_requests import StackRequests
from dpwatch.hub.views import Views
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.derive.verdict import ended
from dpwatch.run.derive.wait_graph import is_silent
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.state.encoding import encode
from dpwatch.run.state.exits import combine_ends, observed_end
from dpwatch.run.state.parts import RankState
from dpwatch.run.state.run_state import RunState, kept_earlier
from dpwatch.runtime.listing import clear_all
from dpwatch.runtime.paths import HUB_FILES, RunDir, RunInfo, clean_run_id, host_name
from dpwatch.runtime.stack_request import STACKS_REQUEST, encode_request
from dpwatch.wire import codec, transport
from dpwatch.wire.messages import (
    HUB_RANK,
    PROTOCOL_VERSION,
    AnyRecord,
    Batch,
    Bye,
    Command,
    Hello,
    Refused,
    Silent,
    Tick,
)
from dpwatch.wire.viewer_messages import (
    COMMAND_REQUEST,
    STATE,
    STATE_REQUEST,
    VIEW_REQUEST,
)

CLEAR_S = 5.0
"""Time limit for removing what other hubs have left, once its own run is over."""

LINGER_S = 20.0
"""How long a hub stays after its last rank has ended and its last viewer has gone."""

EMPTY_S = 60.0
"""How long it waits for a first rank."""

MOST_S = 3600.0
"""How long viewers alone can keep it running."""

UNCONFIRMED_S = 180.0
"""How long it waits for a lost head, to report how its ranks have ended."""

TICK_S = 1.0
SILENT_S = 1.5
"""A rank that sends nothing for this long and has no process is lost; it beats twice a second."""

SILENT = 64
"""Silent ranks reported per tick, at most."""

GONE_NS = 60_000_000_000
"""A host that is silent for this long once the rest of its run has ended is lost too."""

TURN_FRAMES = 512
"""Frames received per turn, so that a flood leaves time for viewers and ticks."""

SHUT_S = 1.0
"""How long connections are refused after there were too many."""

FUTURE_NS = 60_000_000_000
"""How far a frame of this host may be ahead of this process's clock, which is the same clock."""

ANSWER_PAUSE = 4
"""After an answer the hub pauses answering for this multiple of the time it took, so that viewers
take a fifth of the hub's time at most."""

RECEIVE_PAUSE_S = 0.02
"""Pause after receiving frames, so that more frames are handled per turn."""

_log = logging.getLogger("dpwatch.hub")
_command = msgspec.msgpack.Decoder(Command)


class Hub:
    """Serves one run until nobody needs the hub or `stop` is called.

    Args:
        place: The run's directory.
        linger_s: How long to stay after the last rank and viewer.
        host: This host's name; by default its own.
        env: Environment variables.
        guard: Resource limits.
    """

    def __init__(
        self,
        place: RunDir,
        *,
        linger_s: float = LINGER_S,
        host: str = "",
        env: Mapping[str, str] = os.environ,
        guard: Guard | None = None,
    ) -> None:
        self.place = place
        self.linger_s = linger_s
        self.host = host or host_name()
        self._checkpoint = Checkpoint(place.state_file)
        kept = self._checkpoint.restore(place.run_id, self.host, time.monotonic_ns())
        self.state = kept or RunState(place.run_id)
        self.displaced = False
        self._guard = guard or Guard()
        self._frames = RateLimitedLog(_log, "refused frames")
        self._records = RateLimitedLog(_log, "refused records")
        self._failures = RateLimitedLog(_log, "frames that could not be applied")
        self._crowds = RateLimitedLog(_log, "too many connections")
        self._answer_at = self._open_at = 0.0
        self._poller = zmq.Poller()
        self._processes = Processes()
        self._last_steps = LastSteps()
        self._stack_requests = StackRequests(place.stacks_file, self.host)
        asked = [rank.dump.asked for rank in self.state.ranks.values()]
        self._stack_requests.catch_up(max(asked, default=0) + 1)
        self._views = Views()
        self._stopping = False
        self._idle_since = self._started = time.monotonic()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clear_sockets()
        self._intake = transport.pull_socket(self._context, place.ingest)
        self._answers = transport.answer_socket(self._context, place.ask)
        self._membership = Membership(
            self._context,
            self,
            run_id=place.run_id,
            host=self.host,
            frames=lambda: self.state.frames,
            state=lambda: encode(self.state),
            ask=self._ask_for_head,
            known=self.state.others.values(),
            env=env,
        )
        session = env.get("DPWATCH_SESSION", "")
        self._endpoints = Endpoints(
            place,
            {
                place.ingest: self._intake,
                place.ask: self._answers,
            },
            RunInfo(place.run_id, self.host, os.getpid(), time.time(), PROTOCOL_VERSION, session),
        )

    @property
    def refused(self) -> int:
        """Number of refused frames: invalid, or not of this run."""
        return self._frames.times

    def _clear_sockets(self) -> None:
        """Removes a killed hub's socket files; holding the lock, this hub knows that it is dead."""
        for name in HUB_FILES:
            (self.place.path / name).unlink(missing_ok=True)

    def stop(self) -> None:
        """Makes `serve` return at its next turn."""
        self._stopping = True

    def serve(self) -> None:
        """Serves until nobody needs the hub."""
        for each in (self._intake, self._answers):
            self._poller.register(each, zmq.POLLIN)
        tick_at = check_at = time.monotonic()
        while not self._stopping:
            now = time.monotonic()
            self._poller.modify(self._answers, zmq.POLLIN if now >= self._answer_at else 0)
            due = min(tick_at, check_at, *([self._answer_at] if now < self._answer_at else ()))
            ready = dict(self._poller.poll(max(0, int((due - now) * 1e3))))
            if self._intake in ready:
                self._receive_frames()
            if self._answers in ready:
                self._answer()
            if any(each in ready for each in self._membership.sockets):
                self._membership.receive()
            for at in ready:
                if isinstance(at, int):
                    self._on_process_end(at)
            if time.monotonic() >= check_at:
                check_at = time.monotonic() + CHECK_S
                self._check_resources()
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + TICK_S
                self._tick()
                for each in self._membership.sockets:
                    self._poller.register(each, zmq.POLLIN)
            if self._intake in ready:
                time.sleep(RECEIVE_PAUSE_S)

    def close(self) -> None:
        """Closes the sockets, and removes the run's files if they are still this hub's."""
        for each in (self._intake, self._answers):
            each.close(linger=200)
        self._processes.close()
        self._last_steps.close()
        self._membership.close()
        self._context.term()
        if not self.displaced:
            try:
                last.save(self.place.path.parent, self.state)
            except Exception as error:  # noqa: BLE001 - a state that contradicts itself
                self._failures.log(codec.describe_error(error))
            self._endpoints.remove()
            clear_all(self.place.path.parent, CLEAR_S)

    def _check_resources(self) -> None:
        """Disconnects all peers if there are too many; exits if memory exceeds its limit."""
        now = time.monotonic()
        if self._guard.is_crowded():
            if not self._endpoints.shut:
                self._endpoints.disconnect_all()
                self._open_at = now + SHUT_S
                self._crowds.log(f"over {self._guard.most_files} open files, disconnected all")
        elif self._endpoints.shut and now >= self._open_at:
            self._endpoints.reopen()
        if self._guard.is_large():
            _log.error("exiting: it uses more than %d bytes of memory", self._guard.most_bytes)
            self.stop()

    def _check_endpoints(self) -> None:
        if not self._endpoints.is_displaced:
            return
        try:
            self._endpoints.recreate()
        except (OSError, zmq.ZMQError) as error:
            _log.error("exiting: its files were removed or replaced: %s", error)
            self.displaced = True
            self.stop()
        else:
            _log.warning("its files in %s were removed or replaced: recreated", self.place.path)

    def _receive_frames(self) -> None:
        for _ in range(TURN_FRAMES):
            try:
                frame = self._intake.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                batch = self._decode_frame(frame)
            except codec.WireError as error:
                self._frames.log(error)
                continue
            refused = [each for each in batch.records if isinstance(each, Refused)]
            if refused:
                self._records.log(f"of rank {batch.rank}: {refused[-1].why}", len(refused))
                frame = codec.encode(batch)
            if self._membership.is_multi_host:
                self._membership.sync_clocks(batch)
            if self._is_impostor(batch):
                continue
            self._restart_if_over(batch)
            self._apply(batch, frame)
            is_new = batch.host == self.host and not self._processes.watches(batch.pid)
            if is_new and batch.rank in self.state.ranks:
                self._watch(batch.pid)
            if batch.host == self.host:
                for record in batch.records:
                    if isinstance(record, Hello):
                        self._last_steps.hold(batch.pid, record.step_fd)

    def _decode_frame(self, frame: bytes) -> Batch:
        """Decodes a frame that has one part, belongs to this run and is not from the future.

        Raises:
            codec.WireError: The frame is refused.
        """
        parts = 1
        while self._intake.getsockopt(zmq.RCVMORE):
            self._intake.recv()
            parts += 1
        if parts > 1:
            raise codec.WireError(f"message of {parts} parts")
        batch = codec.decode(frame)
        if batch.rank == HUB_RANK or batch.seq < 0 or not self._is_this_run(batch.run_id):
            raise codec.WireError(f"frame of run {batch.run_id!r}, rank {batch.rank}")
        if batch.host == self.host and batch.mono_ns > time.monotonic_ns() + FUTURE_NS:
            raise codec.WireError(f"frame of rank {batch.rank} from the future")
        return batch

    def take_frame(self, batch: Batch) -> None:
        """Applies a frame from another host's hub, converted to this host's clock."""
        self._apply(batch, codec.encode(batch))

    def take_state(self, host: str, part: RunState) -> None:
        """Merges another host's state, converted to this host's clock."""
        merge(self.state, part, host)
        self.state.frames += 1
        self._views.forget()

    def _is_impostor(self, batch: Batch) -> bool:
        """Whether another living process has this rank already; such frames are ignored."""
        rank = self.state.ranks.get(batch.rank)
        if rank is None or rank.pid == batch.pid or rank.bye is not None:
            return False
        if not rank.host == batch.host == self.host or not self._processes.watches(rank.pid):
            return False
        claims = f"processes {rank.pid} and {batch.pid} both claim to be rank {rank.rank}"
        self._frames.log(claims)
        if not self.state.claims:
            self.state.frames += 1
            self.state.claims = f"{claims}: the second is not shown; start each as its own run"
        return True

    def _restart_if_over(self, batch: Batch) -> None:
        """Replaces the state if the run was over and starts again under the same id.

        Examples are a restarted run over several hosts, the next job at the same port, and the next
        training of a pool's worker, whose frames are numbered from 0 again.
        """
        rank = self.state.ranks.get(batch.rank)
        known = rank is not None and rank.pid == batch.pid and batch.seq > 0
        if not known and ended(self.state):
            earlier = kept_earlier([*self.state.earlier, summarize(self.state)])
            frames = self.state.frames + 1
            self.state = RunState(self.place.run_id, frames=frames, earlier=earlier)
            self._membership.forget_states()
            self._views.forget()

    def _is_this_run(self, run_id: str) -> bool:
        return run_id == self.place.run_id or clean_run_id(run_id) == self.place.run_id

    def _watch(self, pid: int) -> None:
        fd = self._processes.watch(pid)
        if fd is not None:
            self._poller.register(fd, zmq.POLLIN)

    def _on_process_end(self, fd: int) -> None:
        """Handles the end of a process, after receiving the last frames that it sent."""
        if fd not in self._processes.fds:
            return
        pid = self._processes.pid_of(fd)
        code = self._processes.exit_of(fd)
        self._poller.unregister(fd)
        self._processes.forget(fd)
        self._receive_frames()
        for rank in self.state.ranks.values():
            if rank.pid == pid and rank.host == self.host:
                self._apply_end(rank, code)

    def _apply_end(self, rank: RankState, code: int | None) -> None:
        """Applies the end of a rank's process, unless it is known already."""
        report = combine_ends(
            rank.own, observed_end(rank.pid, code, self._last_steps.pop(rank.pid)), rank.worker
        )
        if report is not None and report != rank.bye:
            self._apply_own(rank.rank, rank.pid, report)

    def _apply(self, batch: Batch, frame: bytes) -> None:
        try:
            run = advance(self.state, batch)
            if run is not None:
                self._views.reviewed(self.state, run)
        except Exception as error:  # noqa: BLE001 - one frame must not end the hub
            self._failures.log(codec.describe_error(error))
            return  # a head notices the missing number, and asks for the state
        self._membership.forward(self.state.frames, frame, of_rank=batch.rank != HUB_RANK)

    def _answer(self) -> None:
        began = time.monotonic()
        viewer, *request = self._answers.recv_multipart()
        if (
            len(request) == 2
            and request[0] == STACKS_REQUEST
            and self._stack_requests.add(request[1])
        ):
            self._ask_ranks()
        if len(request) == 2 and request[0] == COMMAND_REQUEST:
            self._take_command(request[1])
        try:
            answer = self._answer_to(request)
        except Exception as error:  # noqa: BLE001 - a state that can't be summarized
            self._failures.log(codec.describe_error(error))
        else:
            if answer:
                self._answers.send_multipart([viewer, answer])
        now = time.monotonic()
        self._answer_at = now + ANSWER_PAUSE * (now - began)

    def _take_command(self, payload: bytes) -> None:
        """Applies a report about the command, after the ends of processes that came before it."""
        try:
            report = _command.decode(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return
        if report != self.state.command:
            for fd in self._processes.ended():
                self._on_process_end(fd)
            self._apply_own(HUB_RANK, os.getpid(), report)

    def _answer_to(self, request: list[bytes]) -> bytes:
        """The answer to a viewer, empty for an unknown request."""
        if request == [STATE_REQUEST]:
            return STATE + encode(self.state)
        return self._views.answer(self.state, request[1:]) if request[:1] == [VIEW_REQUEST] else b""

    def _ask_ranks(self) -> None:
        try:
            asked = self._stack_requests.ask(self.state, time.monotonic())
        except OSError as error:
            _log.warning("cannot ask ranks for their stacks: %s", error)
            return
        if asked is not None:
            self._apply_own(HUB_RANK, os.getpid(), asked)
            self._membership.ask(asked)

    def _ask_for_head(self, number: int, ranks: list[int]) -> None:
        """Passes on the head's request for stacks, if it concerns ranks of this host."""
        mine = [rank for rank in ranks if rank in self.state.ranks]
        if mine or not ranks:
            self._stack_requests.catch_up(number)
            self._stack_requests.add(encode_request(mine))
            self._ask_ranks()

    def _tick(self) -> None:
        self._check_endpoints()
        records = [Tick(self._silent()), *self._membership.tick()]
        for at in range(0, len(records), codec.MAX_RECORDS):
            self._apply_own(HUB_RANK, os.getpid(), *records[at : at + codec.MAX_RECORDS])
        for rank in self.state.ranks.values():
            if rank.bye is None and self._is_lost(rank):
                self._apply_end(rank, exit_of(rank.pid))
        self._give_up_silent_hosts()
        self._checkpoint.save(self.state)
        self._ask_ranks()
        for silent in list(self._stack_requests.unanswered(self.state, time.monotonic_ns())):
            self._apply_own(HUB_RANK, os.getpid(), silent)
        now = time.monotonic()
        running = any(rank.bye is None for rank in self.state.ranks.values())
        if running:
            self._idle_since = now
        idle_s = now - self._idle_since
        patience_s = self.linger_s if self.state.ranks else max(EMPTY_S, self.linger_s)
        if self._membership.has_unconfirmed:
            patience_s = max(patience_s, UNCONFIRMED_S)
        if idle_s > MOST_S or (idle_s > patience_s and not self._views.is_watched):
            self.stop()

    def _silent(self) -> list[Silent]:
        """This host's silent ranks, with their processes' kernel states."""
        ranks = self.state.ranks.values()
        found = (rank for rank in ranks if rank.host == self.host and is_silent(self.state, rank))
        return [Silent(each.rank, each.pid, state_of(each.pid)) for each in islice(found, SILENT)]

    def _give_up_silent_hosts(self) -> None:
        """Records ranks on silent hosts as lost, once all other ranks have ended."""
        left = [rank for rank in self.state.ranks.values() if rank.bye is None]
        if len(left) == len(self.state.ranks):
            return
        silent = {name for name in self.state.others if self._membership.is_silent(name, GONE_NS)}
        if all(rank.host in silent for rank in left):
            for rank in left:
                why = f"its host {rank.host} has not reported since the others ended"
                self._apply_own(rank.rank, rank.pid, Bye("lost", why))

    def _apply_own(self, rank: int, pid: int, *records: AnyRecord) -> None:
        batch = Batch(
            version=PROTOCOL_VERSION,
            run_id=self.place.run_id,
            rank=rank,
            host=self.host,
            pid=pid,
            seq=-1,
            dropped=0,
            mono_ns=time.monotonic_ns(),
            wall_ns=time.time_ns(),
            records=list(records),
        )
        self._apply(batch, codec.encode(batch))

    def _is_lost(self, rank: RankState) -> bool:
        if rank.host != self.host or self._processes.watches(rank.pid):
            return False  # the end of a watched process is reported
        return time.monotonic_ns() - rank.seen_ns >= SILENT_S * 1e9 and not runs(rank.pid)


class _LogFile(logging.Handler):
    """Writes to `hub.log`, reopened for each line, since the directory may be recreated."""

    def __init__(self, place: RunDir) -> None:
        super().__init__()
        self._place = place
        self.setFormatter(logging.Formatter(logging.BASIC_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a full disk
            self._place.log(self.format(record))


def main(path: Path, *, linger_s: float = LINGER_S) -> int:
    """Serves the run in a directory. Returns 0, also if another hub serves it already."""
    place = RunDir(path)
    os.umask(0o077)
    allow_files()
    gc.set_threshold(50_000, 20, 20)  # a large state makes full collections expensive
    try:
        place.check()
        lock = _lock(place)
        if lock is None:
            return 0
        logging.basicConfig(handlers=[_LogFile(place)], level=logging.WARNING)
    except OSError:  # there is no log; whoever needs a hub notices by itself
        return 1
    try:
        hub = Hub(place, linger_s=linger_s)
    except (OSError, zmq.ZMQError) as error:  # such as a directory at a socket's path
        _log.error("cannot serve %s: %s", place.path, error)
        os.close(lock)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: hub.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        hub.serve()
    finally:
        if hub.displaced:  # closing its sockets would remove the paths of the hub there now
            os._exit(1)
        hub.close()
        os.close(lock)
    return 0


def _lock(place: RunDir) -> int | None:
    """Takes the lock; retries, since checks for a living hub hold it briefly too."""
    for _ in range(20):
        if (lock := place.try_lock()) is not None:
            return lock
        time.sleep(0.01)
    return None
