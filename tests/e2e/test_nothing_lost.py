"""Mishaps beside real training: its losses stay the same to the last bit, and no record is lost
without being counted: what the ranks recorded is shown by a hub, or told as dropped."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpwatch.runtime.listing import list_runs
from dpwatch.runtime.spawn import ensure_hub
from tests.hubs import has, state_of, until, watching
from tests.processes import DEADLINE_S, environment, eventually

pytestmark = [pytest.mark.dist, pytest.mark.scripts]
SCRIPT = Path(__file__).with_name("mishaps.py")
AT, STEPS = 20, 60
RANKS = 2


def training(what, folder, **more):
    command = [SCRIPT, what, STEPS, folder / "store", folder / "go"]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(DPWATCH_HUB_LINGER_S="3", DPWATCH_RUN_ID="run", **more),
    )


def ended(process):
    """Losses and checksum by rank, and the ranks' books."""
    out, errors = process.communicate(timeout=2 * DEADLINE_S)
    assert process.returncode == 0, errors
    books = {}
    for line in errors.splitlines():
        assert not line.startswith("Traceback"), errors
        if line.startswith("books "):
            rank, *counts = map(int, line.split()[1:])
            books[rank] = dict(zip(("recorded", "drained", "dropped", "sent"), counts, strict=True))
    return sorted(out.splitlines(), key=lambda line: line.split()[0]), books


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without")
    (folder / "go").touch()
    lines, _ = ended(training("wait", folder, DPWATCH="0"))
    assert len(lines) == RANKS * (STEPS + 1)
    return lines


def follow(watcher, **fields):
    deadline, wanted = time.monotonic() + 3 * DEADLINE_S, has("run", **fields)
    while not wanted(watcher.snapshot()):
        assert time.monotonic() < deadline, f"never came: last {watcher.snapshot()}"
        watcher.next(0.1)
    return the_state()


def the_state():
    (place,) = list_runs()
    return state_of(place)


def take_in_the_rest(watcher, books):
    """What came after a first goodbye: a rank whose training is over says another as it ends."""

    deadline = time.monotonic() + DEADLINE_S
    while not all(has_taken(the_state().ranks[r], told) for r, told in books.items()):
        assert time.monotonic() < deadline, f"never came: last {watcher.snapshot()}"
        watcher.next(0.1)


def has_taken(rank, told):
    return rank.taken + rank.missed >= told["sent"]


def balanced(state, books):
    """Each rank's books and the hub's agree: recorded = shown + dropped."""
    assert sorted(books) == list(range(RANKS))
    for rank, told in books.items():
        seen = state.ranks[rank]
        assert told["recorded"] == told["drained"] + told["dropped"]
        assert seen.dropped == told["dropped"]
        assert seen.taken + seen.missed == told["sent"]
        assert seen.refused == 0


def a_hub(other_than=None):
    """The run's hub, once there is one."""

    def look():
        pids = [info.hub_pid for place in list_runs() if (info := place.read_info())]
        return next((pid for pid in pids if pid != other_than), None)

    return eventually(look, "a hub")


def take_away(place):
    """Removes a run's folder, which its hub may make anew at any moment."""
    gone = place.path.parent.with_suffix(".gone")
    place.path.rename(gone)
    shutil.rmtree(gone)


def nothing(pid, place):
    pass


def killed(pid, place):
    os.kill(pid, signal.SIGKILL)
    a_hub(other_than=pid)


def replaced(pid, place):
    """By somebody else: a rank that has no file left can start no hub."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not place.has_hub(), "its end")
    ensure_hub(place)
    a_hub(other_than=pid)


def stopped(pid, place):
    """For longer than a viewer or a rank waits for anything."""
    os.kill(pid, signal.SIGSTOP)
    with watching() as watcher:
        until(watcher, lambda s: not s.runs or s.runs[0].connection == "stale" or s.wall_s)
    os.kill(pid, signal.SIGCONT)


def removed(pid, place):
    take_away(place)
    eventually(place.read_info, "its run.json again")


def full(pid, place):
    """No byte can be written any more, and then what was written is taken away."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
    take_away(place)
    a_hub(other_than=pid)


def viewer_stopped(pid, place):
    viewer = subprocess.Popen(
        [sys.executable, "-c", "from dpwatch.viewer.watcher import Watcher; w = Watcher()\n"
         "while True: print(len((w.next(1) or w.snapshot()).runs), flush=True)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while viewer.stdout.readline() != "1\n":
            pass
        viewer.send_signal(signal.SIGSTOP)
    finally:
        viewer.kill()
        viewer.communicate()


@pytest.mark.parametrize(
    ("what", "mishap"),
    [
        ("wait", nothing),
        ("wait", killed),
        ("wait", stopped),
        ("wait", removed),
        ("wait", full),
        ("wait", viewer_stopped),
        ("clock", nothing),
        ("fork", nothing),
        ("files", nothing),
        ("files", replaced),
    ],
)
def test_losses_are_the_same_and_every_record_is_accounted_for(what, mishap, without, tmp_path):
    process = training(what, tmp_path)
    try:
        with watching() as watcher:
            follow(watcher, steps=AT)
            pid = a_hub()
            mishap(pid, list_runs()[0])
            (tmp_path / "go").touch()
            follow(watcher, steps=STEPS, state="finished")
            lines, books = ended(process)
            take_in_the_rest(watcher, books)
            state = the_state()
    finally:
        process.kill()
    assert lines == without
    balanced(state, books)


@pytest.mark.skipif(os.getuid() != 0, reason="NOT RUN: only root may mount a small disk")
def test_a_disk_that_is_full_from_the_beginning(without, private_runtime, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs", str(private_runtime)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT RUN: no disk can be mounted here")
    try:
        with contextlib.suppress(OSError):
            (private_runtime / "fill").write_bytes(b"x" * (1 << 20))
        (tmp_path / "go").touch()
        lines, _ = ended(training("wait", tmp_path))
    finally:
        subprocess.run(["umount", "-l", str(private_runtime)], check=True)
    assert lines == without
