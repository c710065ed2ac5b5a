"""Starts a run's ranks, supervises them, and leaves nothing of them behind.

However a run ends (all steps done, a rank raises, a rank is killed, a signal to the launcher, the
launcher's death), all of its processes end. Torch-free: the fork server imports torch.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType
from typing import Any

from .config import ConfigError, TrainConfig, new_run_id, require
from .footprint import check_fits
from .forkserver import Exited, Forked, ForkServer
from .messages import (
    End,
    Event,
    Failed,
    Finished,
    Job,
    Progress,
    RankMessage,
    RunEnded,
    RunProgress,
    RunStarted,
    Stopped,
)
from .resume import find_checkpoint

SETTLE_S = 0.5
"""Time for the root cause to show: a killed rank's peers may report before its death is noticed."""

GRACE_S = 2.0
"""Time for a rank to finish its step and say goodbye before it is killed."""

KILLED_S = 10.0
"""Time for the kernel to end a killed process."""


class StopSwitch:
    """Tells `launch` to stop, from a signal handler or another thread."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._read, self._write = os.pipe()

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Stops this run and the following ones, as if by that signal."""
        if self.signum is None:
            self.signum = signum
            os.write(self._write, b"!")

    def fileno(self) -> int:
        """A descriptor that is readable once a stop was requested."""
        return self._read

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """While entered, Ctrl-C, SIGTERM and SIGHUP request a stop (main thread only)."""

        def request(signum: int, frame: FrameType | None) -> None:
            self.request(signum)

        signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(signum, request) for signum in signums]
        try:
            yield
        finally:
            for signum, handler in zip(signums, before, strict=True):
                signal.signal(signum, handler)

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self._read)
        os.close(self._write)


def launch(
    configs: Sequence[TrainConfig],
    *,
    run_ids: Sequence[str] = (),
    on_event: Callable[[Event], None] | None = None,
    stop: StopSwitch | None = None,
    server: ForkServer | None = None,
    ranks_print: bool = False,
) -> int:
    """Trains each configuration in turn, until one does not finish.

    Args:
        configs: What to train.
        run_ids: The runs' ids; generated if not given.
        on_event: Called on the calling thread when a run starts, makes progress and ends.
        stop: Ends the training early.
        server: A warm fork server that outlives the call; by default one for this call.
        ranks_print: Whether each rank prints its progress to its own output.

    Returns:
        An exit code: 0, 1 for a failure, 128 + n if `stop` was requested with signal n.

    Raises:
        ConfigError: A configuration cannot run on this host. Nothing has been started then.
    """
    if find_spec("torch") is None:
        raise ConfigError("training needs torch: pip install torch numpy")
    for config in configs:
        check_fits(config)
        find_checkpoint(config)
    tell = _ignore if on_event is None else on_event
    names = list(run_ids) or [new_run_id(config.strategy) for config in configs]
    with ExitStack() as stack:
        if stop is None:
            stop = StopSwitch()
            stack.callback(stop.close)
        if server is None:
            server = stack.enter_context(ForkServer())
        for config, run_id in zip(configs, names, strict=True):
            ended = _Run(config, run_id, server, stop, tell, ranks_print).supervise()
            tell(ended)
            if ended.exit_code:
                return ended.exit_code
    return 0


@dataclass(slots=True)
class _Rank:
    """State of one rank."""

    number: int
    pipe: Connection[None, RankMessage]
    pid: int | None = None
    exit_code: int | None = None
    end: End | None = None

    @property
    def in_trouble(self) -> bool:
        """It failed, was stopped by somebody, or exited without reporting."""
        return self.exited_silently or isinstance(self.end, Failed | Stopped)

    @property
    def exited_silently(self) -> bool:
        """It was killed, or exited early, without a report that would explain it."""
        if self.exit_code is None:
            return False
        return self.end is None or (isinstance(self.end, Finished) and self.exit_code != 0)


@dataclass(slots=True)
class _Run:
    """One run's ranks, from the first start to the last exit."""

    config: TrainConfig
    run_id: str
    server: ForkServer
    stop: StopSwitch
    on_event: Callable[[Event], None]
    ranks_print: bool
    ranks: list[_Rank] = field(default_factory=list)
    server_gone: bool = False
    early: list[Event] | None = field(default_factory=list)
    """Events of quick ranks before all ranks are started; None from then on."""

    def supervise(self) -> RunEnded:
        """Starts the ranks and returns when all have exited."""
        with ExitStack() as pipes:
            try:
                self._wait_until(lambda: self.server.ready)
                if not self._in_trouble():
                    self._start(pipes)
                self._wait_until(self._all_gone)
                if self.stop.signum is None:
                    self._wait_until(self._all_gone, SETTLE_S)
                verdict = self._verdict()
                self._end_all(signal.SIGTERM, GRACE_S)
                return verdict
            finally:
                self.on_event = _ignore  # in case the callback itself raised
                self._end_all(signal.SIGKILL, KILLED_S)

    def _start(self, pipes: ExitStack) -> None:
        """Forks the ranks; rank 0 of a group gets the listening socket of its store."""
        with ExitStack() as handed_over:
            port = 0
            extra: list[int] = []
            if require(self.config.strategy).distributed:
                listener = socket.create_server(("127.0.0.1", 0), backlog=self.config.processes)
                handed_over.enter_context(listener)
                port = listener.getsockname()[1]
                extra = [listener.fileno()]
            for number in range(self.config.processes):
                ours, theirs = Pipe(duplex=False)
                self.ranks.append(_Rank(number, pipes.enter_context(ours)))
                with theirs:
                    self._fork(number, port, [theirs.fileno(), *extra])
                extra = []
        pids = tuple(rank.pid for rank in self.ranks if rank.pid is not None)
        early, self.early = self.early or [], None
        for event in (RunStarted(self.run_id, self.config, pids), *early):
            self.on_event(event)

    def _fork(self, number: int, port: int, handles: list[int]) -> None:
        ours = {name: value for name, value in os.environ.items() if name.startswith("DPWATCH")}
        job = Job(
            config=self.config,
            run_id=self.run_id,
            rank=number,
            world_size=self.config.processes,
            store_port=port,
            environment={"DPWATCH_OUTPUT": "1", **ours, "DPWATCH_RUN_ID": self.run_id},
            prints=self.ranks_print,
        )
        try:
            self.server.fork(job, handles)
        except OSError:
            self.server_gone = True
        # Also when asked to stop: a rank without a known pid could not be killed.
        self._wait_until(lambda: self.ranks[number].pid is not None, KILLED_S)

    def _end_all(self, signum: int, patience_s: float) -> None:
        for rank in self.ranks:
            if rank.pid is not None and rank.exit_code is None:
                self.server.kill(rank.pid, signum)
        self._wait_until(self._all_gone, patience_s)

    def _all_gone(self) -> bool:
        return all(rank.exit_code is not None for rank in self.ranks)

    def _in_trouble(self) -> bool:
        return self.stop.signum is not None or any(rank.in_trouble for rank in self.ranks)

    def _wait_until(self, reached: Callable[[], bool], patience_s: float | None = None) -> None:
        """Processes messages until `reached`, for `patience_s`; without that, until trouble."""
        deadline_s = None if patience_s is None else time.monotonic() + patience_s
        while not self.server_gone and not reached():
            if deadline_s is None:
                if self._in_trouble():
                    return
                self._process_messages(None)
            elif (left_s := deadline_s - time.monotonic()) > 0:
                self._process_messages(left_s)
            else:
                return

    def _process_messages(self, patience_s: float | None) -> None:
        by_pipe = {rank.pipe: rank for rank in self.ranks if not rank.pipe.closed}
        sources: list[Any] = [self.server.control, *by_pipe]
        if self.stop.signum is None:
            sources.append(self.stop)
        ready = wait(sources, patience_s)
        for pipe, rank in by_pipe.items():
            if pipe in ready:
                self._on_message(rank)
        if self.server.control in ready:
            self._on_server_message()

    def _on_message(self, rank: _Rank) -> None:
        try:
            message = rank.pipe.recv()
        except (EOFError, OSError):
            rank.pipe.close()
            return
        if isinstance(message, Progress):
            progress = RunProgress(self.run_id, self.config, message)
            if self.early is None:
                self.on_event(progress)
            else:
                self.early.append(progress)
        else:
            rank.end = message

    def _on_server_message(self) -> None:
        try:
            answer = self.server.receive()
        except (EOFError, OSError):
            self.server_gone = True
            return
        if isinstance(answer, Forked):
            next(rank for rank in self.ranks if rank.pid is None).pid = answer.pid
        elif isinstance(answer, Exited):
            for rank in self.ranks:
                if rank.pid == answer.pid and rank.exit_code is None:
                    while not rank.pipe.closed:  # its last messages come before its exit
                        self._on_message(rank)
                    rank.exit_code = answer.exit_code

    def _verdict(self) -> RunEnded:
        """How the run ended, as far as known before the remaining ranks are ended."""
        finished = all(isinstance(rank.end, Finished) for rank in self.ranks)
        if self.stop.signum is not None and not (finished and self.ranks):
            return RunEnded(self.run_id, self.config, 128 + self.stop.signum)
        memory = tuple(
            device
            for rank in self.ranks
            if isinstance(rank.end, Finished | Failed)
            for device in rank.end.memory
        )
        if not self.server_gone and not any(rank.in_trouble for rank in self.ranks):
            return RunEnded(self.run_id, self.config, 0, memory=memory)
        reason, trace, oom_device = self._cause()
        return RunEnded(self.run_id, self.config, 1, reason, trace, memory, oom_device)

    def _cause(self) -> tuple[str, str, str]:
        """The root cause: a line, a traceback if any, a device that ran out of memory.

        A rank that exited without reporting comes before one that raised: its peers raise because
        it is gone.
        """
        for rank in self.ranks:
            if rank.exited_silently and rank.exit_code is not None:
                return _gone(rank.number, rank.pid, rank.exit_code), "", ""
        failures = [(r.end.at_ns, r, r.end) for r in self.ranks if isinstance(r.end, Failed)]
        if failures:
            _, rank, failure = min(failures, key=lambda item: item[0])
            return f"rank {rank.number}: {failure.reason}", failure.trace, failure.oom_device
        for rank in self.ranks:
            if isinstance(rank.end, Stopped):
                name = signal.Signals(rank.end.signum).name
                return f"rank {rank.number} (pid {rank.pid}) was stopped by {name}", "", ""
        return "the ranks' parent process has ended; start the run again", "", ""


def _ignore(event: Event) -> None:
    pass


def _gone(number: int, pid: int | None, exit_code: int) -> str:
    if exit_code > 0:
        return f"rank {number} (pid {pid}) exited with code {exit_code} without reporting an error"
    line = f"rank {number} (pid {pid}) was killed by {signal.Signals(-exit_code).name}"
    if -exit_code == signal.SIGKILL:
        return f"{line}; if it was out of memory (see dmesg), reduce --batch-per-gpu or --d-model"
    return f"{line}; the other ranks were ended"
