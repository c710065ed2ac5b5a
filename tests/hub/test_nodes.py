"""A head and nodes in one process over CURVE on loopback: joining, disconnects and restarts."""

import itertools
import os
import secrets
import socket
import threading
import time
import zlib
from contextlib import contextmanager

import msgspec
import pytest

from dpwatch.hub import server
from dpwatch.hub.cluster import head as head_module
from dpwatch.hub.cluster import membership as joining
from dpwatch.hub.server import Hub
from dpwatch.runtime import paths
from dpwatch.runtime.curve_keys import make_keys
from dpwatch.runtime.launcher_env import FIRST_PORT, PORTS, HeadPlace
from dpwatch.runtime.stack_request import RequestFile
from dpwatch.wire.messages import Bye, Line, Output, Stacks, ThreadStack
from tests.frames import MS, START_NS, batch, collective, hello, step
from tests.hubs import DEADLINE_S, rank, watching

WORLD = 4


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Makes hubs tick without delay."""
    monkeypatch.setattr(server, "TICK_S", 0.1)
    monkeypatch.setattr(head_module, "ASK_NS", 200 * MS)


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWATCH_KEYS", str(tmp_path / "keys"))
    return make_keys(tmp_path / "keys")


@pytest.fixture
def run_id():
    return f"run-{secrets.token_hex(4)}"  # its port follows from it


@contextmanager
def hub_on(node, run_id, tmp_path):
    """The hub of one host, on its own thread and in its own runtime directory."""
    place = paths.RunDir(tmp_path / f"h{node}" / run_id)
    place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = place.try_lock()
    env = {
        "GROUP_WORLD_SIZE": "2",
        "GROUP_RANK": str(node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    hub = Hub(place, linger_s=60, host=f"host{node}", env=env)
    thread = threading.Thread(target=hub.serve)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join(DEADLINE_S)
        hub.close()
        os.close(lock)


def frames_of(r, run_id, steps, first=0):
    """A rank's frames, with two ranks per host."""
    node = r // 2
    for index in range(first, steps):
        at = index * 100 + 50
        records = [
            collective(index, index, nbytes=1200, ranks=WORLD, at_ms=at, took_ms=2),
            step(index, samples=4, loss=1.0 + r),
        ]
        if index == first:
            records.insert(0, hello(WORLD))
        yield batch(
            *records,
            rank=r,
            seq=index,
            host=f"host{node}",
            run_id=run_id,
            pid=os.getpid(),  # one that lives
            now_ns=START_NS + (index + 1) * 100 * MS,
        )


def tell(hubs, run_id, steps, first=0):
    for r in range(WORLD):
        with rank(hubs[r // 2].place) as send:
            for frame in frames_of(r, run_id, steps, first):
                send(frame)


def seen_by(hub, condition):
    """The run's view at a viewer of that hub, once it satisfies the condition."""
    with watching(places=lambda: [hub.place]) as watcher:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            snapshot = watcher.next(0.1)
            if snapshot and snapshot.runs and condition(snapshot.runs[0]):
                return snapshot.runs[0]
        raise AssertionError(f"never came: last {watcher.snapshot()}")


def has_all(steps, ranks=WORLD):
    return lambda view: (
        len(view.run.ranks) == ranks and all(row.steps == steps for row in view.run.ranks)
    )


def test_the_head_shows_one_run_of_all_hosts(keys, run_id, tmp_path):
    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        tell([head, node], run_id, 10)
        view = seen_by(
            head, lambda v: has_all(10)(v) and v.run.loss.last is not None and v.run.other_hosts
        )
        assert view.run.hosts == ["host0", "host1"]
        assert view.run.loss.last == pytest.approx(2.5)
        (all_reduce,) = view.run.collectives
        assert all_reduce.bytes_per_step == 1200
        assert {row.sent_bytes_per_step for row in view.run.ranks} == {1800}  # 2 (N - 1) / N
        assert [row.missed_frames for row in view.run.ranks] == [0] * WORLD
        (other,) = view.run.other_hosts
        assert other.host == "host1"
        assert abs(other.clock_offset_ms) <= other.clock_error_ms  # one clock: the truth is 0
        local = seen_by(node, lambda v: "head's host" in v.run.note)
        assert [row.rank for row in local.run.ranks] == [2, 3]


def test_a_viewer_at_the_head_sees_hosts_join(keys, run_id, tmp_path):
    with hub_on(0, run_id, tmp_path) as head, watching(places=lambda: [head.place]) as watcher:
        with rank(head.place) as send:
            for frame in frames_of(0, run_id, 3):
                send(frame)
        with hub_on(1, run_id, tmp_path) as node:
            tell([head, node], run_id, 5)
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                snapshot = watcher.next(0.1)
                if snapshot and snapshot.runs and has_all(5)(snapshot.runs[0]):
                    return
    raise AssertionError("never came")


def test_a_heads_successor_gets_everything_again(keys, run_id, tmp_path):
    with hub_on(1, run_id, tmp_path) as node:
        with hub_on(0, run_id, tmp_path) as head:
            tell([head, node], run_id, 5)
            seen_by(head, has_all(5))
        with rank(node.place) as send:  # while there is no head
            for r in (2, 3):
                for frame in frames_of(r, run_id, 9, first=5):
                    send(frame)
        with hub_on(0, run_id, tmp_path) as head:
            view = seen_by(head, has_all(9, ranks=2))
            assert [row.rank for row in view.run.ranks] == [2, 3]
            assert [row.missed_frames for row in view.run.ranks] == [0, 0]


def test_a_node_is_stale_until_its_hubs_successor_joins(keys, run_id, tmp_path):
    with hub_on(0, run_id, tmp_path) as head:
        with hub_on(1, run_id, tmp_path) as node:
            tell([head, node], run_id, 5)
            seen_by(head, has_all(5))
        view = seen_by(head, lambda v: v.run.ranks[3].state == "stale")
        assert view.run.ranks[3].steps == 5
        assert view.run.ranks[3].step_ms.p50 == pytest.approx(100)
        assert view.run.other_hosts[0].silent_s > 0
        assert "host1" in view.run.reason or view.run.state == "hung"
        with hub_on(1, run_id, tmp_path) as node:  # its successor knows nothing of the past
            with rank(node.place) as send:
                for r in (2, 3):
                    for frame in frames_of(r, run_id, 9, first=7):
                        send(frame)
            view = seen_by(
                head,
                lambda v: (
                    v.run.ranks[3].steps == v.run.ranks[2].steps == 9
                    and not v.run.other_hosts[0].silent_s
                ),
            )
        assert [row.missed_frames for row in view.run.ranks[2:]] == [2, 2]
        assert view.history.rank_step_ms[3].steps == (0, 1, 2, 3, 4, 7, 8)
        assert view.run.other_hosts[0].resent == 1


def test_frames_lost_between_hubs_are_restored_with_the_state(keys, run_id, tmp_path):
    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        tell([head, node], run_id, 3)
        seen_by(head, has_all(3))
        send, dropped = node._membership.uplink._send, itertools.count()

        def lossy(header, *parts):
            return True if parts and next(dropped) < 2 else send(header, *parts)

        node._membership.uplink._send = lossy
        tell([head, node], run_id, 8, first=3)
        view = seen_by(
            head, lambda v: has_all(8)(v) and v.run.other_hosts and v.run.other_hosts[0].resent
        )
    assert next(dropped) > 2
    (all_reduce,) = view.run.collectives
    assert all_reduce.bytes_per_step == 1200
    assert [row.missed_frames for row in view.run.ranks] == [0] * WORLD


def test_a_disconnected_node_waits_to_report_its_ranks_ends(keys, run_id, tmp_path):
    def ended(r):
        return batch(Bye("finished"), rank=r, seq=2, host="host1", run_id=run_id,
                     pid=os.getpid(), now_ns=START_NS + 300 * MS)  # fmt: skip

    with hub_on(1, run_id, tmp_path) as node:
        node.linger_s = 0.0
        with hub_on(0, run_id, tmp_path) as head:
            tell([head, node], run_id, 2)
            seen_by(head, has_all(2))
        with rank(node.place) as send:
            for r in (2, 3):
                send(ended(r))
        seen_by(node, lambda v: v.run.state == "finished")
        assert not node._stopping
        with hub_on(0, run_id, tmp_path) as head:
            seen_by(head, lambda v: {row.state for row in v.run.ranks} == {"finished"})
            deadline = time.monotonic() + DEADLINE_S
            while not node._stopping and time.monotonic() < deadline:
                threading.Event().wait(0.05)
            assert node._stopping  # now that the head has confirmed it


def test_ranks_of_other_hosts_are_asked_for_their_stacks_at_the_head(keys, run_id, tmp_path):
    def told(*records, seq):
        return batch(*records, rank=3, seq=seq, host="host1", run_id=run_id, pid=os.getpid(),
                     now_ns=time.monotonic_ns())  # fmt: skip

    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        tell([head, node], run_id, 2)
        seen_by(head, has_all(2))
        file = RequestFile(node.place.stacks_file)
        with watching(places=lambda: [head.place]) as watcher, rank(node.place) as send:
            deadline = time.monotonic() + DEADLINE_S
            asked, view, seq = None, None, itertools.count(2)
            watcher.ask_stacks(run_id, [3])
            while time.monotonic() < deadline:
                snapshot = watcher.next(0.1)
                if asked is None and (asked := file.changed()) is not None:
                    thread = ThreadStack("MainThread", True, 1, ["train.py:7 main"], 0)
                    send(told(Stacks(asked.number, time.monotonic_ns(), [thread]), seq=next(seq)))
                if snapshot and snapshot.runs:
                    view = snapshot.runs[0]
                    standing = {each.rank: each for each in view.stacks}
                    if 3 in standing and standing[3].standing == "answered":
                        break
        assert asked.ranks == [3]
        assert standing[3].threads[0].frames == ["train.py:7 main"]
        assert standing[2].standing == "unasked"


def test_output_of_other_hosts_before_the_head_started_is_shown(keys, run_id, tmp_path):
    with hub_on(1, run_id, tmp_path) as node:
        with rank(node.place) as send:
            send(batch(hello(WORLD), Output("out", [Line(START_NS, "epoch 1")]), rank=2,
                       host="host1", run_id=run_id, pid=os.getpid()))  # fmt: skip
        with hub_on(0, run_id, tmp_path) as head:
            view = seen_by(head, lambda v: bool(v.output) and bool(v.run.other_hosts))
    (printed,) = view.output
    assert (printed.rank, printed.lines[0].text) == (2, "epoch 1")


def test_the_head_reports_a_lost_rank_on_another_host(keys, run_id, tmp_path):
    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        tell([head, node], run_id, 2)
        seen_by(head, has_all(2))
        with rank(node.place) as send:
            send(
                batch(Bye("lost", "killed"), rank=3, seq=2, host="host1", run_id=run_id,
                      pid=os.getpid(), now_ns=START_NS + 300 * MS)
            )  # fmt: skip
        view = seen_by(head, lambda v: v.run.state == "lost")
    assert "rank 3" in view.run.reason


def test_a_viewer_of_several_hubs_sees_the_whole_run_once(keys, run_id, tmp_path):
    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        tell([head, node], run_id, 3)
        seen_by(head, has_all(3))
        with watching(places=lambda: [node.place, head.place]) as watcher:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                snapshot = watcher.next(0.1)
                if snapshot and watcher.complete and len(snapshot.runs) == 1:
                    break
            assert has_all(3)(snapshot.runs[0])


def test_a_head_whose_port_is_taken_reports_it_and_retries(keys, run_id, tmp_path):
    port = FIRST_PORT + zlib.crc32(run_id.encode()) % PORTS
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
            tell([head, node], run_id, 2)
            view = seen_by(head, lambda v: bool(v.run.note))
            assert f"no head at port {port}" in view.run.note
            other.close()
            view = seen_by(head, has_all(2))
            assert not seen_by(head, lambda v: not v.run.note).run.note


def test_a_host_of_another_run_is_refused(keys, run_id, tmp_path, monkeypatch):
    with hub_on(0, run_id, tmp_path) as head:
        port = FIRST_PORT + zlib.crc32(run_id.encode()) % PORTS
        place = HeadPlace(host="127.0.0.1", port=port, here=False)
        monkeypatch.setattr(joining, "head_place", lambda env, named: place)
        with hub_on(1, "another", tmp_path) as node:
            with rank(node.place) as send:
                for frame in frames_of(2, "another", 1):
                    send(frame)
            view = seen_by(node, lambda v: "another run" in v.run.note)
            assert head.host in view.run.note or "127.0.0.1" in view.run.note


def test_without_keys_each_host_is_alone_and_reports_it(run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("DPWATCH_KEYS", str(tmp_path / "none"))
    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        tell([head, node], run_id, 2)
        for hub, ranks in ((head, [0, 1]), (node, [2, 3])):
            view = seen_by(hub, lambda v: bool(v.run.note))
            assert [row.rank for row in view.run.ranks] == ranks
            assert view.run.note == (
                "ranks on other hosts are not shown: create keys with dpwatch keys"
            )
        assert head._membership.sockets == node._membership.sockets == ()


def test_keys_that_others_can_read_are_not_used(keys, run_id, tmp_path):
    (tmp_path / "keys" / "head.json").chmod(0o644)
    with hub_on(0, run_id, tmp_path) as head:
        assert head._membership.sockets == ()
        with rank(head.place) as send:
            for frame in frames_of(0, run_id, 1):
                send(frame)
        view = seen_by(head, lambda v: bool(v.run.note))
    assert "is readable by others" in view.run.note


def test_a_run_restarted_under_its_id_is_another_run(keys, run_id, tmp_path):
    def another(frame):
        return msgspec.structs.replace(frame, pid=1)

    with hub_on(0, run_id, tmp_path) as head, hub_on(1, run_id, tmp_path) as node:
        hubs = [head, node]
        tell(hubs, run_id, 6)
        seen_by(head, has_all(6))  # what is sent by another socket may overtake it
        for r in range(WORLD):
            with rank(hubs[r // 2].place) as send:
                send(batch(Bye("failed", "x"), rank=r, seq=6, host=f"host{r // 2}", run_id=run_id,
                           pid=os.getpid(), now_ns=START_NS + 700 * MS))  # fmt: skip
        seen_by(head, lambda v: [row.state for row in v.run.ranks] == ["failed"] * WORLD)
        for r in range(WORLD):
            with rank(hubs[r // 2].place) as send:
                for frame in frames_of(r, run_id, 3):
                    send(another(frame))
        view = seen_by(head, lambda v: has_all(3)(v) and v.run.loss.last is not None)
    assert view.run.loss.first == view.run.loss.last == pytest.approx(2.5)
    assert [row.missed_frames for row in view.run.ranks] == [0] * WORLD
