"""A hub in its own process, and what others may do to its sockets and its directory."""

import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from dpwatch.hub.processes import Processes
from dpwatch.hub.resource_guard import Guard, RateLimitedLog
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.derive.view_messages import ViewWriter
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime import paths
from dpwatch.viewer.follower import Follower
from dpwatch.viewer.remote.agent_script import listed_run
from dpwatch.wire import codec, transport
from dpwatch.wire.viewer_messages import STATE_REQUEST, VIEW
from tests.frames import batch, dp_run, hello, step
from tests.hubs import DEADLINE_S, has, rank, serving, until, watching
from tests.processes import eventually

GREETING = bytes([0xFF, *[0] * 8, 0x7F, 3, 0]) + b"NULL".ljust(20, b"\0") + bytes(32)
"""Greeting of a ZMTP 3.0 peer without security."""

READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"


@contextmanager
def hub_process(files=None, umask=0o000):
    """A hub in its own process, with an umask that removes no permissions."""
    place = paths.run_dir("run")

    def prepare():
        os.umask(umask)
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    command = [sys.executable, "-m", "dpwatch.hub", str(place.path)]
    process = subprocess.Popen(command, preexec_fn=prepare, stderr=subprocess.PIPE, text=True)
    try:
        eventually(place.read_info, "its run.json")
        yield place, process
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def connect(place, name="in"):
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(DEADLINE_S)
    try:
        raw.connect(str(place.path / name))
    except OSError:
        raw.close()
        raise
    return raw


def log_of(place):
    return place.log_file.read_text() if place.log_file.exists() else ""


def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def still_serves(place, index=0):
    """Checks that a rank's frame reaches a viewer."""
    with rank(place) as send, watching() as watcher:
        send(batch(hello(), step(index), seq=index))
        until(watcher, has("run", steps=index + 1))


def test_sockets_and_files_are_private_under_any_umask():
    with hub_process() as (place, _):
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in place.path.iterdir()}
        assert modes == dict.fromkeys(("in", "ask", "lock", "run.json"), 0o600)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_another_users_process_is_refused_even_if_modes_allow_it():
    stranger_is = """
import os, sys, time, zmq
os.setuid(int(sys.argv[2]))
socket = zmq.Context().socket(zmq.PUSH)
socket.connect(sys.argv[1])
socket.send(b"")
time.sleep(60)
"""
    context = zmq.Context()
    folder = Path("/tmp") / f"dpw-{os.getpid()}"
    folder.mkdir(mode=0o711)
    try:
        intake = transport.pull_socket(context, f"ipc://{folder / 'in'}")
        (folder / "in").chmod(0o777)
        for user, comes in ((0, True), (65534, False)):
            command = [sys.executable, "-c", stranger_is, intake.LAST_ENDPOINT, str(user)]
            stranger = subprocess.Popen(command)
            try:
                assert bool(intake.poll(30_000 if comes else 3_000)) is comes
                assert not comes or intake.recv() == b""
            finally:
                stranger.kill()
                stranger.wait()
    finally:
        intake.close()
        context.term()
        shutil.rmtree(folder)


def test_garbage_partial_frames_and_endless_handshakes_are_harmless():
    """They cost neither the hub's memory nor another rank's records."""
    with hub_process() as (place, process):
        before = resident_mb(process.pid)
        started = GREETING + READY
        half = b"\x02" + (codec.MAX_FRAME_BYTES - 1).to_bytes(8, "big") + b"\x00" * 100
        huge = b"\x02" + (1 << 40).to_bytes(8, "big")
        said = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, GREETING[:11], GREETING,
                GREETING + b"\xff" * 99, started + half, started + huge,
                os.urandom(4096)]  # fmt: skip
        held = []
        for name in ("in", "ask"):
            for each in said * 5:
                raw = connect(place, name)
                held.append(raw)
                with contextlib.suppress(OSError):  # already disconnected
                    raw.sendall(each)
        still_serves(place)
        assert resident_mb(process.pid) - before < 64
        for raw in held:
            raw.close()
        still_serves(place, 1)
        assert len(log_of(place).splitlines()) < 10


def test_a_hub_survives_more_connections_than_files():
    """libzmq aborts if `accept` fails for lack of files, so the hub refuses connections before."""
    with hub_process(files=300) as (place, _), rank(place) as send, watching() as watcher:
        send(batch(hello(), step(0)))
        until(watcher, has("run", steps=1))
        held = []

        def crowd():
            with contextlib.suppress(OSError):  # its backlog is full, or it refuses connections
                while len(held) < 200:
                    held.append(connect(place))
            return "too many" in log_of(place)

        eventually(crowd, "a line in its log")
        for raw in held:
            raw.close()
        still_serves(place, 1)
        send(batch(step(2), seq=2))  # a connected rank reconnects by itself
        until(watcher, has("run", steps=3))
        assert len(log_of(place).splitlines()) < 5


def test_messages_of_many_parts_are_refused():
    with serving() as hub, watching() as watcher:
        context = zmq.Context()
        stranger = transport.push_socket(context, hub.place.ingest)
        good = codec.encode(batch(hello(), step(0)))
        stranger.send_multipart([good] * 3)
        stranger.send(codec.encode(batch(hello(), step(4))))
        until(watcher, has("run", steps=5))
        assert hub.refused == 1
        assert hub.state.ranks[0].lanes[0].step_ms.freeze().steps == (4,)
        stranger.close()
        context.term()


def test_an_invalid_record_is_refused_alone_and_counts_as_dropped():
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        good = step(0)
        backward = msgspec.structs.replace(step(1), start_ns=good.end_ns, end_ns=good.start_ns)
        far = msgspec.structs.replace(step(1), step=1 << 62)
        send(batch(hello(), good, backward, far, step(1)))
        until(watcher, has("run", steps=2))
        (row,) = watcher.snapshot().runs[0].run.ranks
        assert (row.dropped, row.step_ms.p50) == (2, 100.0)


def test_frames_from_the_future_are_refused():
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        now = time.monotonic_ns()
        send(batch(hello(), rank=1, host=hub.host, pid=os.getpid(), now_ns=now + 10**15))
        send(batch(hello(), step(0), host=hub.host, pid=os.getpid(), now_ns=now))
        until(watcher, has("run", steps=1))
        assert hub.refused == 1
        assert list(hub.state.ranks) == [0]


def test_viewers_that_flood_requests_leave_time_for_records():
    """Their requests are throttled, and a rank's records arrive meanwhile."""
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        context = zmq.Context()
        asking = transport.ask_socket(context, hub.place.ask)
        asking.setsockopt(zmq.SNDTIMEO, 0)
        for frame in list(dp_run(steps=20))[:-1]:
            with contextlib.suppress(zmq.Again):
                for _ in range(50):
                    asking.send(STATE_REQUEST)
                    asking.send_multipart([b"state", b"and", b"more"])
            send(frame)
        until(watcher, has("run", steps=20))
        asking.close()
        context.term()


def test_a_view_that_fails_is_logged(monkeypatch, caplog):
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(hub._views, "answer", lambda *_: 1 // 0)
            eventually(lambda: (watcher.next(0.05), caplog.text)[1], "a line in the log")
        send(batch(hello(), step(0)))
        until(watcher, has("run", steps=1))


def test_a_hub_survives_a_view_that_fails_after_a_review(monkeypatch, caplog):
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        send(batch(hello(), step(0)))
        until(watcher, has("run", steps=1))
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(hub._views, "reviewed", lambda *_: 1 // 0)
            eventually(
                lambda: "ZeroDivisionError" in caplog.text or "division" in caplog.text,
                "a line in the log",
            )
        send(batch(step(1), seq=1))
        until(watcher, has("run", steps=2))


def test_a_hub_clears_its_folder_even_if_its_run_cannot_be_saved(monkeypatch):
    from dpwatch.hub import last

    monkeypatch.setattr(last, "save", lambda *_: 1 // 0)
    with serving() as hub:
        pass
    assert not hub.place.path.exists()


def test_a_hub_survives_a_frame_that_it_fails_to_apply(monkeypatch, caplog):
    from dpwatch.hub import server

    advance = server.advance

    def failing(state, frame):
        if frame.seq == 13:
            state.frames += 1
            raise ZeroDivisionError("some bug")
        advance(state, frame)

    monkeypatch.setattr(server, "advance", failing)
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        send(batch(hello(), step(0)))
        until(watcher, has("run", steps=1))
        send(batch(step(1), seq=13))
        send(batch(step(2), seq=14))
        until(watcher, has("run", steps=3))
    assert "some bug" in caplog.text


def test_a_folder_that_is_removed_is_recreated():
    with hub_process() as (place, process), rank(place) as send:
        send(batch(hello(), step(0)))
        still_serves(place)
        gone = place.path.rename(place.path.parent.with_suffix(".gone"))
        shutil.rmtree(gone)
        eventually(place.read_info, "its run.json again")
        with watching() as watcher:
            until(watcher, has("run", steps=1))  # the state is kept
            send(batch(step(1), seq=1))  # and ranks are still connected
            until(watcher, has("run", steps=2))
        assert place.read_info().hub_pid == process.pid
        assert "recreated" in log_of(place)


def test_a_stolen_socket_is_bound_again():
    with hub_process() as (place, _):
        thief, context = None, zmq.Context()
        thief = context.socket(zmq.PULL)
        thief.bind(place.ingest)  # libzmq silently takes over the hub's path
        mark = (place.path / "in").lstat().st_ino
        eventually(lambda: "recreated" in log_of(place), "a line in the log")
        assert (place.path / "in").lstat().st_ino != mark
        still_serves(place)
        thief.close(linger=0)  # which removes the path again
        context.term()
        eventually(lambda: (place.path / "in").exists(), "the socket again")
        still_serves(place, 1)


def test_a_displaced_hub_leaves_the_other_hubs_files_alone():
    with hub_process() as (place, first):
        first.send_signal(signal.SIGSTOP)  # so that it can't recreate the files first
        shutil.rmtree(place.path)
        other = paths.run_dir("run")
        lock = other.try_lock()  # as a hub that was started meanwhile would
        assert lock is not None
        (other.path / "in").write_text("the other's")
        first.send_signal(signal.SIGCONT)
        assert first.wait(DEADLINE_S) == 1
        assert (other.path / "in").read_text() == "the other's"
        os.close(lock)
        first.poll = lambda: None  # it was meant to end
        first.send_signal = lambda signum: None
        first.wait = lambda timeout=None: 0


def test_a_hub_that_grows_too_large_exits_with_a_log_line(caplog):
    with serving(guard=Guard(most_bytes=1)) as hub:
        eventually(lambda: hub._stopping, "its end")
    assert "memory" in caplog.text


def test_the_number_of_watched_processes_is_limited(monkeypatch):
    from dpwatch.hub import processes

    monkeypatch.setattr(processes, "MOST", 1)
    watched = Processes()
    assert watched.watch(os.getpid()) is not None
    assert watched.watch(os.getppid()) is None
    watched.close()


def test_frequent_events_are_logged_rarely(caplog):
    limited = RateLimitedLog(logging.getLogger("x"), "refused")
    for number in range(1000):
        limited.log(f"number {number}")
    assert len(caplog.records) == 10
    assert limited.times == 1000


class Lying:
    """A hub that sends arbitrary data to one viewer."""

    def __init__(self):
        self.context = zmq.Context()
        self.place = paths.run_dir("run")
        self.follower = Follower(self.context, self.place, hub_pid=1)
        self.state = RunState("run")

    def close(self):
        self.follower.close()
        self.context.term()


@pytest.fixture
def lying():
    hub = Lying()
    yield hub
    hub.close()


def good_state():
    state = RunState("run")
    for frame in dp_run(steps=3):
        apply(state, frame)
    return state


def view_of(state):
    writer = ViewWriter(0)
    writer.update(state, summarize(state), curves=True)
    return VIEW + writer.message(0)


def test_a_viewer_survives_invalid_data_from_a_hub(lying):
    follower, whole = lying.follower, view_of(good_state())
    for answer in (b"", b"\xc1" * 100, whole[:-9], b"\x91" * 100_000, whole[:300] + os.urandom(99)):
        follower._take_answer(answer)
        assert follower.view() is None
    assert follower.error
    follower._take_answer(whole)
    assert follower.view().run.steps == 3
    assert follower.error == ""


def test_a_flood_from_a_hub_leaves_a_viewer_time_to_draw(lying, monkeypatch):
    from dpwatch.viewer import follower

    taken = []
    monkeypatch.setattr(follower, "_receive", lambda socket: b"x" * 9)
    monkeypatch.setattr(lying.follower, "_take_answer", taken.append)
    lying.follower.poll()
    assert len(taken) == follower.TURN_ANSWERS


def test_the_hub_takes_its_limits_from_the_system():
    assert Guard().most_files <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert Guard().most_bytes >= 1 << 30
    assert not Guard().is_large()


def test_any_listing_of_another_host_is_handled():
    info = '{"run_id": "run", "host": "h", "hub_pid": 1, "started_wall_s": 2.0}'
    path = "/tmp/dpwatch-1/run/run.json"
    assert listed_run(f"{path}\t{info}\n")[0] == path
    names = ("..", "a b", "a:b", "\x1b[2J", "x" * 99)
    for bad in ("", "run.json", "/tmp:8080/run/run.json", *(f"/tmp/{n}/run.json" for n in names)):
        assert listed_run(f"{bad}\t{info}\n") is None, bad
    for text in ("", "{}", "[" * 50_000, info.replace("1,", "-1,"), info.replace("2.0", "1e300")):
        assert listed_run(f"{path}\t{text}\n") is None, text[:40]
