"""The step of a killed process, as its hub reads it."""

import os
import signal
import subprocess
import sys

import pytest

from dpwatch.hub.last_steps import LastSteps
from dpwatch.runtime import last_step
from dpwatch.runtime.last_step import LastStep

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")

AT_STEP_7 = """
from dpwatch.runtime.last_step import LastStep
mine = LastStep()
mine.cell[0] = 7
print(mine.fd, flush=True)
input()
mine.cell[0] = 131
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def child():
    with subprocess.Popen(
        [sys.executable, "-c", AT_STEP_7], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_the_last_step_of_a_killed_process_is_read(child):
    held = LastSteps()
    held.hold(child.pid, int(child.stdout.readline()))
    child.communicate("\n")
    assert child.returncode == -signal.SIGKILL
    assert held.pop(child.pid) == 131
    assert held.pop(child.pid) is None  # once


def test_a_restarted_process_is_read_again():
    held, first = LastSteps(), LastStep()
    held.hold(os.getpid(), first.fd)
    first.cell[0] = 5
    first.close()
    second = LastStep()
    held.hold(os.getpid(), second.fd)
    second.cell[0] = 1
    assert held.pop(os.getpid()) == 1
    second.close()


def test_only_such_a_file_of_that_process_is_read(tmp_path):
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    mine = LastStep()
    assert last_step.opened(os.getpid(), other) is None
    assert last_step.opened(os.getpid(), 1 << 20) is None
    fd = last_step.opened(os.getpid(), mine.fd)
    assert last_step.read(fd, os.getpid()) == 0
    assert last_step.read(fd, os.getpid() + 1) is None
    assert last_step.read(other, os.getpid()) is None  # too short
    for each in (fd, other):
        os.close(each)
    mine.close()


def test_close_leaves_nothing_open_and_late_writes_do_nothing():
    before = sorted(os.listdir("/proc/self/fd"))
    mine, held = LastStep(), LastSteps()
    held.hold(os.getpid(), mine.fd)
    cell = mine.cell
    mine.close()
    held.close()
    cell[0] = mine.cell[0] = 3  # as another thread might that was just about to
    del cell
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_without_memfd_steps_are_still_counted(monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    mine = LastStep()
    mine.cell[0] = 3
    assert mine.fd is None
    mine.close()
