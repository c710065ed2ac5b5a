"""The end of processes is noticed at once, with the exit code."""

import os
import select
import subprocess
import sys

import pytest

from dpwatch.hub import processes

ENDS = [
    ("pass", 0),
    ("import os; os._exit(3)", 3),
    ("import os; os.kill(os.getpid(), 9)", -9),
]


def ended(code):
    """A process that has ended and is not reaped."""
    child = subprocess.Popen([sys.executable, "-c", code])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child


@pytest.mark.parametrize(("code", "status"), ENDS)
def test_how_a_process_ended_is_known_until_it_is_reaped(code, status):
    child = ended(code)
    assert processes.exit_of(child.pid) == status
    assert not processes.runs(child.pid)
    assert child.wait() == status
    assert processes.exit_of(child.pid) is None
    assert not processes.runs(child.pid)


def test_a_running_process_has_no_exit():
    assert processes.runs(os.getpid())
    assert processes.exit_of(os.getpid()) is None


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd on this system")
def test_the_end_of_a_process_wakes_a_poll():
    watched = processes.Processes()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fd = watched.watch(child.pid)
    assert watched.watch(child.pid) is None  # once is enough
    assert select.select([fd], [], [], 0)[0] == []
    child.communicate(b"\n")
    assert select.select([fd], [], [], 60)[0] == [fd]
    assert watched.pid_of(fd) == child.pid
    watched.close()
    assert watched.fds == []
    assert watched.watch(child.pid) is None  # gone, and that is no error


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd on this system")
@pytest.mark.parametrize(("code", "status"), ENDS)
def test_the_exit_of_a_reaped_process_is_known_on_new_kernels(code, status):
    watched = processes.Processes()
    child = subprocess.Popen([sys.executable, "-c", f"input(); {code}"], stdin=subprocess.PIPE)
    fd = watched.watch(child.pid)
    assert watched.ended() == []
    assert watched.exit_of(fd) is None
    child.communicate(b"\n")  # reaped: /proc has nothing of it any more
    assert watched.ended() == [fd]
    told = watched.exit_of(fd)
    watched.close()
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert told == (status if release >= (6, 15) else None)
