"""A warm parent for ranks: a process that imports torch once and forks every rank from it.

Importing torch and what an optimizer pulls in takes seconds; forking a process that has imported it
takes milliseconds. `multiprocessing`'s own forkserver does the same, but leaves a temporary
directory behind when its owner is killed, cannot tell when it is warm, and cannot kill a rank
without racing for its pid. This one

- runs in its own session, so a Ctrl-C reaches only the launcher;
- ends and kills the ranks when its launcher's end of the socket closes, for whatever reason;
- reaps the ranks and is the only process that signals them, so no signal hits a reused pid.

Importing this module does not import torch: the server process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import recv_handle, send_handle
from types import TracebackType

from .messages import Job

_PR_SET_PDEATHSIG = 1

_PRELOAD = (
    "torch",
    "torch._dynamo",  # the first optimizer imports it, and sympy with it
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "zmq",
    "dpwatch.plan.zero",
    "dpwatch.probe.collectives.observer",
    "dpwatch.probe.memory.ledger",
    "dpwatch.probe.memory.passive",
    "dpwatch.probe.probe",
    f"{__package__}.worker",
)


@dataclass(slots=True, frozen=True)
class Ready:
    """The server has imported everything."""


@dataclass(slots=True, frozen=True)
class Forked:
    """The last requested rank runs as this process."""

    pid: int


@dataclass(slots=True, frozen=True)
class Exited:
    """A rank has exited: its exit code, −n if signal n killed it."""

    pid: int
    exit_code: int


@dataclass(slots=True, frozen=True)
class _Fork:
    """Requests a rank; its descriptors follow."""

    job: Job
    handles: int


@dataclass(slots=True, frozen=True)
class _Kill:
    """Requests a signal to a rank, if it is still running."""

    pid: int
    signum: int


Answer = Ready | Forked | Exited


class ForkServer:
    """The launcher's end. A context manager: leaving it ends the server and every rank.

    Attributes:
        control: Readable when there is an `Answer` to `receive`.
        ready: The server has finished importing.
    """

    def __init__(self) -> None:
        self.ready = False
        self.control, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_server_environment(),
                start_new_session=True,
            )

    def fork(self, job: Job, handles: Sequence[int]) -> None:
        """Requests a rank with copies of the open `handles`; `Forked` answers.

        Raises:
            OSError: The server has exited.
        """
        self.control.send(_Fork(job, len(handles)))
        for handle in handles:
            send_handle(self.control, handle, self._process.pid)

    def receive(self) -> Answer:
        """Waits for the next answer.

        Raises:
            EOFError: The server has exited.
        """
        answer: Answer = self.control.recv()
        if isinstance(answer, Ready):
            self.ready = True
        return answer

    def kill(self, pid: int, signum: int) -> None:
        """Sends a signal to a rank; does nothing if the rank or the server has exited."""
        with contextlib.suppress(OSError):
            self.control.send(_Kill(pid, signum))

    def close(self) -> None:
        """Ends the server, and with it every rank."""
        self.control.close()
        if not self.ready:  # still importing, so there are no ranks
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _server_environment() -> dict[str, str]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **one_thread}


def serve(fd: int) -> None:
    """The server process: forks ranks on request until its launcher exits."""
    control: Connection[Answer, _Fork | _Kill] = Connection(fd)
    alive: set[int] = set()
    wake, _ = _wake_on_child_exit()
    for name in _PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # what was imported stays shared with the ranks
    try:
        control.send(Ready())
        while True:
            for ready in wait([control, wake]):
                if ready is control:
                    _handle_request(control, alive)
                else:
                    os.read(wake, 512)
                    _reap(control, alive)
    except (EOFError, OSError):
        pass  # the launcher has exited
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)


def _wake_on_child_exit() -> tuple[int, int]:
    """A descriptor that becomes readable when a child exits."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read, write


def _handle_request(control: Connection[Answer, _Fork | _Kill], alive: set[int]) -> None:
    request = control.recv()
    if isinstance(request, _Kill):
        if request.pid in alive:
            os.kill(request.pid, request.signum)
        return
    handles = [recv_handle(control) for _ in range(request.handles)]
    server_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        control.close()
        _become_rank(server_pid, request.job, handles)
    for handle in handles:
        os.close(handle)
    alive.add(pid)
    control.send(Forked(pid))


def _reap(control: Connection[Answer, _Fork | _Kill], alive: set[int]) -> None:
    for pid in tuple(alive):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            alive.discard(pid)
            control.send(Exited(pid, os.waitstatus_to_exitcode(status)))


def _become_rank(server_pid: int, job: Job, handles: list[int]) -> None:
    """In the child: runs the rank and exits, never returning to the server's loop."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with(server_pid)
        code = importlib.import_module(f"{__package__}.worker").run_forked(job, handles)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(server_pid: int) -> None:
    """Ends this process when the server dies, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server_pid:
        os._exit(1)
