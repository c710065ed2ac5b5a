"""Hub and follower over real sockets, with the hub on a thread."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dpwatch.runtime import paths
from dpwatch.runtime.spawn import ensure_hub
from dpwatch.wire.messages import Bye, Command
from tests.frames import batch, ddp_run, dp_run, hello, step
from tests.hubs import DEADLINE_S, has, rank, serving, until, watching


def test_early_and_late_viewers_see_the_same_run():
    with serving() as hub, rank(hub.place) as send, watching() as early:
        for frame in ddp_run(steps=10, ranks=2):
            send(frame)
        seen = until(early, has("run", state="finished"))
        with watching() as late:
            again = until(late, has("run", state="finished"))
    assert seen.runs[0].run.collectives == again.runs[0].run.collectives
    assert seen.runs[0].history == again.runs[0].history
    assert len(again.runs[0].history.loss.steps) == 10


def test_frames_of_other_runs_are_refused_and_counted():
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        send(batch(hello(), run_id="another"))
        send(batch(hello(), rank=-1))
        send(batch(hello(), step(0)))
        until(watcher, has("run", steps=1))
        assert hub.refused == 2


def test_a_rank_that_vanishes_is_lost():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        now_ns = time.monotonic_ns()
        send(batch(hello(), step(0), pid=gone.pid, host=hub.host, now_ns=now_ns))
        run = until(watcher, has("run", state="lost")).runs[0].run
    assert str(gone.pid) in run.reason


def is_over(snapshot):
    (view,) = snapshot.runs
    return view.run.ranks[0].state in ("finished", "failed", "lost")


@pytest.mark.parametrize(
    ("ends", "code", "state", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", -9, "lost", "was killed by SIGKILL"),
        ("import os; os._exit(3)", 3, "failed", "exit code 3"),
        ("import os; os._exit(0)", 0, "finished", ""),
    ],
)
def test_a_rank_that_dies_is_reported_with_its_exit(ends, code, state, said):
    child = subprocess.Popen(
        [sys.executable, "-c", f"input(); {ends}"], stdin=subprocess.PIPE, text=True
    )
    try:
        with serving() as hub, rank(hub.place) as send, watching() as watcher:
            now_ns = time.monotonic_ns()
            send(batch(hello(), step(0), pid=child.pid, host=hub.host, now_ns=now_ns))
            until(watcher, has("run", steps=1))
            child.communicate("\n")
            # It is reaped at once: before Linux 6.15 its exit may be gone before the hub looks.
            run = until(watcher, is_over).runs[0].run
    finally:
        child.kill()
    (row,) = run.ranks
    assert (row.exit, run.state) in ((code, state), (None, "lost"))
    assert said in run.reason or row.exit is None
    assert row.exit == 0 or f"process {child.pid} " in run.reason


@pytest.mark.parametrize(
    ("code", "bye", "state", "reason"),
    [
        ("sys.exit(1)", Bye("finished", then="exit"), "failed", "rank 0: exit code 1"),
        ("sys.exit(1)", Bye("failed", "ValueError: x"), "failed", "rank 0: ValueError: x"),
        ("sys.exit(1)", Bye("finished", then="next"), "finished", ""),
        ("os.kill(os.getpid(), 9)", Bye("finished"), "failed", "killed by SIGKILL after its goo"),
        ("os.kill(os.getpid(), 15)", Bye("finished"), "finished", ""),  # a pool ends its workers
        ("sys.exit(0)", Bye("finished", then="exit"), "finished", ""),
        ("sys.exit(0)", Bye("failed", "ValueError: x"), "failed", "rank 0: ValueError: x"),
    ],
)
def test_the_exit_code_decides(code, bye, state, reason):
    child = subprocess.Popen(
        [sys.executable, "-c", f"import os, sys; input(); {code}"], stdin=subprocess.PIPE, text=True
    )
    try:
        with serving() as hub, rank(hub.place) as send, watching() as watcher:
            who = {"pid": child.pid, "host": hub.host}
            send(batch(hello(), step(0), now_ns=time.monotonic_ns(), **who))
            send(batch(bye, now_ns=time.monotonic_ns(), seq=1, **who))
            until(watcher, has("run", state=bye.state))
            child.stdin.write("\n")
            child.stdin.close()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            run = until(watcher, lambda s: s.runs[0].run.ranks[0].exit is not None).runs[0].run
            ended, exited = hub.state.ranks[0].ended_ns, hub.state.ranks[0].exited_ns
    finally:
        child.kill()
        child.wait()
    assert run.state == run.ranks[0].state == state
    assert reason in run.reason
    assert bool(reason) == bool(run.reason)
    assert ended < exited  # the time of its goodbye is kept


def test_hubs_learn_how_the_command_ended():
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        send(batch(hello(), step(0)))
        send(batch(Bye("finished"), seq=1))
        until(watcher, has("run", state="finished"))
        watcher.command = Command(exit=3)
        run = until(watcher, has("run", command_exit=3)).runs[0].run
        # The exit of the rank's process is unknown.
        assert run.state == "failed"
        assert run.reason == "the command ended with exit code 3, and no rank reported why"


def test_ranks_ended_by_ctrl_c_are_not_lost():
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        for r in (0, 1):
            send(batch(hello(2), step(0), rank=r, now_ns=time.monotonic_ns()))
        until(watcher, has("run", steps=1))
        watcher.command = Command(interrupted_ns=time.monotonic_ns())
        until(watcher, lambda s: hub.state.command is not None)
        for r in (0, 1):  # as its hub tells of a rank that a launcher has killed
            hub._apply_own(r, 1000 + r, Bye("lost", "process was killed by SIGTERM", -15))
        run = until(watcher, has("run", state="failed")).runs[0].run
    assert run.reason == "stopped by Ctrl-C"
    assert [d.kind for d in run.diagnoses] == []


def test_the_last_view_stays_when_the_hub_ends():
    with watching() as watcher:
        with serving() as hub, rank(hub.place) as send:
            for frame in dp_run(steps=5):
                send(frame)
            until(watcher, has("run", state="finished"))
        seen = until(watcher, lambda s: s.runs[0].connection == "closed")
    assert seen.runs[0].run.steps == 5
    assert not hub.place.path.exists()


def test_only_wanted_runs_are_followed():
    with serving("one") as one, serving("two") as two, watching(wanted="two".__eq__) as watcher:
        for hub in (one, two):
            with rank(hub.place) as send:
                send(batch(hello(), step(0), run_id=hub.place.run_id))
        snapshot = until(watcher, has("two", steps=1))
    assert [v.run.run_id for v in snapshot.runs] == ["two"]


def test_an_unneeded_hub_exits_and_leaves_no_files():
    with serving(linger_s=0.0) as hub, rank(hub.place) as send:
        for frame in dp_run(steps=3):
            send(frame)
        deadline = time.monotonic() + DEADLINE_S
        while not hub._stopping and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert hub._stopping


def test_a_hub_of_another_protocol_is_reported_and_left_alone():
    place = paths.run_dir("other")
    place.write_info(paths.RunInfo("other", "here", 1, 2.0, protocol=99))
    lock = place.try_lock()
    with watching() as watcher:
        assert "protocol 99" in watcher.snapshot().notice or "protocol 99" in watcher.notice
    os.close(lock)


@pytest.fixture
def spawned(monkeypatch):
    monkeypatch.setenv("DPWATCH_HUB_LINGER_S", "5")
    place = paths.run_dir("run")
    ensure_hub(place)
    deadline = time.monotonic() + DEADLINE_S
    while place.read_info() is None and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    yield place
    if (info := place.read_info()) and place.has_hub():
        os.kill(info.hub_pid, signal.SIGTERM)
        while place.has_hub():
            threading.Event().wait(0.02)


def test_the_hub_process_serves_detached_and_ends_on_sigterm(spawned):
    pid = spawned.read_info().hub_pid
    assert os.getsid(pid) != os.getsid(0)
    ensure_hub(spawned)  # a second one finds the first
    assert spawned.read_info().hub_pid == pid
    with rank(spawned) as send, watching() as watcher:
        send(batch(hello(), step(0)))
        until(watcher, has("run", steps=1))
        os.kill(pid, signal.SIGTERM)
        until(watcher, lambda s: s.runs[0].connection == "closed")
    assert not spawned.path.exists()


def test_a_killed_hubs_successor_is_followed(spawned):
    with watching() as watcher:
        with rank(spawned) as send:
            send(batch(hello(), step(0)))
            until(watcher, has("run", steps=1))
        os.kill(spawned.read_info().hub_pid, signal.SIGKILL)
        while spawned.has_hub():
            threading.Event().wait(0.02)
        ensure_hub(spawned)
        with rank(spawned) as send:
            send(batch(hello(), step(1), pid=os.getpid()))
            until(watcher, has("run", steps=2))
            assert until(watcher, lambda s: s.runs[0].connection == "live")


def test_a_hub_that_cannot_bind_its_socket_logs_it(private_runtime):
    place = paths.run_dir("occupied")
    (place.path / "in").mkdir()
    command = [sys.executable, "-m", "dpwatch.hub", str(place.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
    (told,) = place.log_file.read_text().splitlines()
    assert "cannot serve" in told
