"""What threads and processes wait in, for waits that the test creates."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from dpwatch.probe.stack.kernel_waits import describe_worker, wait_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

DEADLINE_S = 60


def until(found, wanted):
    """Calls `found` until it returns what is wanted. Returns: its last result."""
    deadline = time.monotonic() + DEADLINE_S
    while (seen := found()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def pipe_read(stack):
    r, w = os.pipe()
    stack.callback(os.close, r)
    stack.callback(os.close, w)
    return lambda: os.read(r, 1), lambda: os.write(w, b"x")


def pipe_write(stack):
    r, w = os.pipe()
    stack.callback(os.close, r)
    stack.callback(os.close, w)
    return lambda: os.write(w, b"x" * (1 << 17)), lambda: os.read(r, 1 << 17)


def receive(stack):
    one, other = (stack.enter_context(end) for end in socket.socketpair())
    return lambda: one.recv(1), lambda: other.send(b"x")


def lock(stack):
    held = threading.Lock()
    held.acquire()
    return lambda: held.acquire(timeout=DEADLINE_S), held.release


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lock, ("lock", "")),
        (pipe_read, ("pipe", "reading from a pipe")),
        (pipe_write, ("pipe", "writing to a pipe")),
        (receive, ("socket", "receiving from a socket")),
    ],
)
def test_what_a_thread_waits_in_is_found(make, wanted):
    with ExitStack() as stack:
        block, release = make(stack)
        thread = threading.Thread(target=block, daemon=True)
        thread.start()
        found = until(lambda: wait_of(thread.native_id), wanted)
        release()
        thread.join(DEADLINE_S)
    if found != wanted and found == (wanted[0], ""):
        pytest.skip("this kernel does not tell which system call a thread is in")
    assert found == wanted
    nothing = until(lambda: wait_of(thread.native_id), ("", ""))  # it is over
    assert nothing == wait_of(None) == ("", "")


def test_a_worker_process_and_its_waiting_parent_are_described():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    thread = threading.Thread(target=child.wait, daemon=True)
    thread.start()
    wanted = ("process", f"waiting for process {child.pid}")
    kind, on = until(lambda: wait_of(thread.native_id), wanted)
    assert kind == "process"
    assert on in ("", "waiting for a child process", wanted[1])
    assert "reading from a pipe" in until(
        lambda: describe_worker(3, child.pid),
        f"its worker 3 (pid {child.pid}) is reading from a pipe",
    )
    child.communicate(b"\n", timeout=DEADLINE_S)
    thread.join(DEADLINE_S)
    assert describe_worker(3, child.pid) == f"its worker 3 (pid {child.pid}) is dead"
