"""Runs on another host, over a real ssh server on a loopback port."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from dpwatch.hub.follow import Watcher
from dpwatch.hub.ssh_hosts import SshError, SshHosts
from dpwatch.wire import paths
from tests.frames import ddp_run
from tests.hubs import DEADLINE_S, has, rank, serving, until
from tests.sshd import MISSING, sshd

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "ssh"
    folder.mkdir()
    with sshd(folder) as running:
        yield running


@pytest.fixture
def remote(private_runtime):
    """Where runs "over there" lie: this host's own runtime directory, named explicitly."""
    return str(paths.runtime_dir())


class Viewing:
    """A viewer over ssh."""

    def __init__(self, server, remote, *names):
        self.hosts = SshHosts(names, ssh=server.ssh, remote_dir=remote)
        self.folder = Path(self.hosts._workspace.path)
        self.wrong = self.hosts.connect()
        self.watcher = Watcher(places=self.hosts.runs, said=lambda: self.hosts.notice)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.watcher.close()
        self.hosts.close()


def test_a_run_over_there_is_seen_as_it_is(server, remote):
    with serving() as hub, rank(hub.place) as send:
        frames = list(ddp_run(steps=10, ranks=2))
        for frame in frames[:-2]:
            send(frame)
        with Viewing(server, remote, "node1") as viewing:
            until(viewing.watcher, has("run", steps=10))
            viewing.watcher.ask_stacks("run", [1])
            asked = until(viewing.watcher, lambda s: s.runs[0].stacks).runs[0].stacks
            assert [entry.standing for entry in asked] == ["unasked", "awaited"]
            assert hub.place.stacks_file.exists()
            for frame in frames[-2:]:
                send(frame)
            seen = until(viewing.watcher, has("run", state="finished"))
            assert seen.runs[0].run.collectives
            assert viewing.folder.stat().st_mode & 0o777 == 0o700
    assert not viewing.folder.exists()
    gone(server)


def gone(server):
    """No session is left on the server."""
    deadline = time.monotonic() + DEADLINE_S
    while server.connections() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert server.connections() == []


def test_a_lost_connection_keeps_the_screen_and_comes_back(server, remote):
    with serving() as hub, rank(hub.place) as send:
        frames = list(ddp_run(steps=10, ranks=2))
        for frame in frames[:12]:
            send(frame)
        with Viewing(server, remote, "node1") as viewing:
            until(viewing.watcher, has("run", steps=5))
            server.stop()
            lost = until(viewing.watcher, lambda s: "trying again" in s.notice)
            assert lost.runs[0].run.steps == 5
            stale = until(viewing.watcher, lambda s: s.runs[0].connection == "stale")
            assert stale.runs[0].run.steps == 5
            for frame in frames[12:]:
                send(frame)
            server.start()
            back = until(viewing.watcher, has("run", state="finished"))
            assert back.runs[0].connection == "live"
            assert back.runs[0].run.steps == 10
            until(viewing.watcher, lambda s: not s.notice)


def test_a_host_that_is_down_does_not_disturb_the_others(server, remote):
    with serving() as hub, rank(hub.place) as send:
        for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
            send(frame)
        with Viewing(server, remote, "node1", "nowhere") as viewing:
            (wrong,) = viewing.wrong
            assert wrong.startswith("nowhere: ")
            assert "refused" in wrong
            until(viewing.watcher, has("run", steps=5))
            until(viewing.watcher, lambda s: "nowhere" in s.notice)


def test_no_host_at_all_is_an_error(server, remote):
    hosts = SshHosts(["nowhere"], ssh=server.ssh, remote_dir=remote)
    with pytest.raises(SshError, match="refused"):
        hosts.connect()
    hosts.close()


def test_a_run_that_ends_and_its_successor_are_followed(server, remote):
    with Viewing(server, remote, "node1") as viewing:
        until(viewing.watcher, lambda s: "no run on node1" in s.notice)
        for name in ("one", "two"):
            with serving(name) as hub, rank(hub.place) as send:
                for frame in ddp_run(steps=5, ranks=2):
                    send(_renamed(frame, name))
                until(viewing.watcher, has(name, steps=5))
            until(viewing.watcher, lambda s: all(v.connection == "closed" for v in s.runs))


def _renamed(frame, run_id):
    return msgspec.structs.replace(frame, run_id=run_id)


def test_a_run_of_another_protocol_is_said(server, remote):
    place = paths.run_dir("older")
    lock = place.try_lock()
    place.write_info(paths.RunInfo("older", "here", os.getpid(), 2.0, protocol=99))
    with Viewing(server, remote, "node1") as viewing:
        until(viewing.watcher, lambda s: "protocol 99" in s.notice)
    os.close(lock)


def command(server, remote, *words):
    ours = [sys.executable, "-m", "dpwatch", "ssh", "--ssh", " ".join(server.ssh)]
    return subprocess.run(
        [*ours, "--remote-dir", remote, *words], capture_output=True, text=True, timeout=DEADLINE_S
    )


def test_the_command_prints_once_and_says_what_is_wrong(server, remote):
    with serving() as hub, rank(hub.place) as send:
        for frame in ddp_run(steps=5, ranks=2):
            send(frame)
        told = command(server, remote, "node1", "--once", "--json")
    assert told.returncode == 0, told.stderr
    (run,) = json.loads(told.stdout)["runs"]
    assert (run["run_id"], run["steps"]) == ("run", 5)
    nothing = command(server, remote, "node1", "--once")
    assert (nothing.returncode, nothing.stdout) == (3, "")
    assert "no run on node1; start one there" in nothing.stderr
    down = command(server, remote, "nowhere", "--once")
    assert (down.returncode, down.stdout) == (2, "")
    assert "refused" in down.stderr
    assert down.stderr.count("\n") == 1
    gone(server)


def test_a_killed_viewer_leaves_nothing_on_either_side(server, remote, tmp_path):
    ours = [sys.executable, "-c", KILLED, remote, *server.ssh]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(ours, stdout=subprocess.PIPE, text=True, env=env) as viewer:
        assert viewer.stdout.readline() == "up\n"
        assert server.connections()
        viewer.kill()
    gone(server)


KILLED = """
import sys, time
from dpwatch.hub.ssh_hosts import SshHosts
remote, *ssh = sys.argv[1:]
hosts = SshHosts(["node1"], ssh=ssh, remote_dir=remote)
hosts.connect()
print("up", flush=True)
time.sleep(600)
"""
