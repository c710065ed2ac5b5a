"""Follows one run: asks its hub for views and reads the answers.

A follower belongs to one thread. Nothing it does can slow down a rank.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import zmq

from dpwatch.run.model.snapshot import Run, RunView
from dpwatch.run.model.view_message import ViewReader
from dpwatch.runtime.paths import RunDir
from dpwatch.runtime.stack_request import STACKS_REQUEST, encode_request
from dpwatch.wire import codec, transport
from dpwatch.wire.messages import Command
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
"""A hub that has not answered for this long is shown as stale."""

ASK_AGAIN_S = 1.0
"""After this long without an answer the request is repeated, in case it was lost."""

SSH_INTERVAL_S = 0.5
"""Least interval between requests to a hub on another host."""

TURN_ANSWERS = 64
"""Answers read per turn, so that a hub that floods the viewer leaves time to draw."""


class Follower:
    """Follows one run.

    Args:
        context: ZeroMQ context.
        place: The run's directory.
        hub_pid: The hub's process.
        keeps_end: Whether to fetch the run's whole state at its end, so that the end of the command
            that started it can still be included.
        clock: Monotonic clock, in seconds.

    Attributes:
        error: What is invalid about the hub's last answer, "" if it is valid.
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
        self.error = ""
        self.end: RunState | None = None
        self._keeps_end = keeps_end
        self._clock = clock
        self._interval_s = SSH_INTERVAL_S if place.ssh_host else 0.0
        self._reader = ViewReader()
        self._answered_at = clock()
        self._requested_at = -ASK_AGAIN_S
        self._is_waiting = False
        self._reported: Command | None = None
        self._shown: tuple[RunView | None, str, RunView] | None = None
        self.answers = transport.ask_socket(context, place.ask)

    def ask(self) -> None:
        """Requests the run's view, unless an answer is outstanding or has just arrived."""
        now = self._clock()
        pause_s = ASK_AGAIN_S if self._is_waiting else self._interval_s
        if self.closed or now - self._requested_at < pause_s:
            return
        self._requested_at, self._is_waiting = now, True
        # The queue of a stopped hub is full.
        with contextlib.suppress(zmq.Again):
            number = VIEW_NUMBER.pack(self._reader.number)
            self.answers.send_multipart([VIEW_REQUEST, number], zmq.NOBLOCK)
            if self._keeps_end and self._reader.is_over and self.end is None:
                self.answers.send(STATE_REQUEST, zmq.NOBLOCK)

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is outstanding."""
        return self._is_waiting and not self.closed

    def ask_stacks(self, ranks: Sequence[int]) -> None:
        """Requests stacks of these ranks, or of all if empty; the answers appear in the view."""
        if not self.closed:
            with contextlib.suppress(zmq.Again):  # too many requests are queued
                request = [STACKS_REQUEST, encode_request(list(ranks))]
                self.answers.send_multipart(request, zmq.NOBLOCK)

    def report_command(self, command: Command) -> None:
        """Reports a change of the command that started the run to the hub."""
        if command == self._reported:
            return
        if self.closed:
            self._reported = command
            self._show_command(command)
            return
        with contextlib.suppress(zmq.Again):
            request = [COMMAND_REQUEST, msgspec.msgpack.encode(command)]
            self.answers.send_multipart(request, zmq.NOBLOCK)
            self._reported = command

    def _show_command(self, command: Command) -> None:
        """Updates the view as the hub, which has ended, would have done."""
        found = self._reader.view
        if self.end is not None:
            from dpwatch.run.derive.summarize import view  # needs numpy, so only imported here

            self.end.command = command
            try:
                self._reader.view = view(self.end)
            except Exception as error:  # noqa: BLE001 - an inconsistent state
                self.error = f"{type(error).__name__}: {codec.describe_error(error)}"
        elif found is not None:
            run = msgspec.structs.replace(found.run, command_exit=command.exit)
            self._reader.view = msgspec.structs.replace(found, run=run)

    def poll(self) -> None:
        """Reads the answers that have arrived."""
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
                raise ValueError("unknown kind of answer")
        # Another host's hub may send anything, including inconsistent states.
        except Exception as error:  # noqa: BLE001
            self.error = f"{type(error).__name__}: {codec.describe_error(error)}"
            self._reader = ViewReader()
        else:
            self.error = ""
            self._is_waiting &= kind == STATE
        self._answered_at = self._clock()

    @property
    def connection(self) -> str:
        """`live`, `stale` (the hub does not answer) or `closed`."""
        if self.closed:
            return "closed"
        return "stale" if self._clock() - self._answered_at > STALE_S else "live"

    def view(self) -> RunView | None:
        """The run's current view, None before a rank has reported."""
        found, connection = self._reader.view, self.connection
        if found is None or not found.run.hosts:
            return None
        # Drawing compares by identity, so an unchanged view must be the same object.
        if self._shown is None or self._shown[0] is not found or self._shown[1] != connection:
            ssh_host = self.place.ssh_host
            shown = msgspec.structs.replace(found, connection=connection, ssh_host=ssh_host)
            self._shown = found, connection, shown
        return self._shown[2]

    @property
    def earlier(self) -> list[Run]:
        """Earlier runs of this hub, which have ended."""
        return self._reader.earlier

    @property
    def complete(self) -> bool:
        """Whether a view has arrived."""
        return self._reader.view is not None

    @property
    def is_done(self) -> bool:
        """Whether the run is over and its final state has arrived."""
        return self._reader.is_over and self.end is not None

    @property
    def is_to_be_replaced(self) -> bool:
        """Whether to follow the run's next hub, if there is one."""
        return self.closed and not self.done

    def close(self) -> None:
        """Disconnects from the hub; the last view stays."""
        if self.closed:
            return
        self.closed = True
        self.answers.close()
        view, reported = self._reader.view, self._reported
        if view is not None and reported is not None and view.run.command_exit != reported.exit:
            self._show_command(reported)  # the hub's view with it has not arrived in time


def _receive(socket: zmq.Socket[bytes]) -> bytes | None:
    try:
        return socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None
