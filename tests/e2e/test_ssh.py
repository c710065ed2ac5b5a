"""Runs on another host, over a real ssh server on a loopback port."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from dpwatch.runtime import paths
from dpwatch.viewer.remote.agent_script import script
from dpwatch.viewer.remote.ssh_hosts import SshError, SshHosts
from dpwatch.viewer.watcher import Watcher
from dpwatch.wire.messages import PROTOCOL_VERSION
from tests.frames import ddp_run
from tests.hubs import DEADLINE_S, has, rank, serving, until
from tests.nvidia_smi import A100, A100_USERS, NO_DRIVER, NvidiaSmi
from tests.processes import eventually, processes_with
from tests.sshd import MISSING, PASSPHRASE, sshd
from tests.terminals import MISSING as NO_TMUX
from tests.terminals import Terminal

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with sshd(tmp_path_factory.mktemp("ssh")) as running:
        yield running


@pytest.fixture
def smi(server):
    """The server's nvidia-smi, once it is told what to say."""
    program = NvidiaSmi(server.folder)
    yield program
    program.remove()


@pytest.fixture
def remote(private_runtime):
    """Where runs "over there" lie: this host's own runtime directory, named explicitly."""
    return str(paths.runtime_dir())


class Viewing:
    """A viewer over ssh."""

    def __init__(self, server, remote, *names, **options):
        self.hosts = SshHosts(names, ssh=server.ssh, remote_dir=remote, **options)
        self.folder = Path(self.hosts._workspace.path)
        self.wrong = self.hosts.connect()
        self.watcher = Watcher(
            places=self.hosts.runs, user_notice=lambda: self.hosts.notice, gpus=self.hosts.gpus
        )

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
            assert seen.runs[0].ssh_host == "node1"
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
            until(viewing.watcher, lambda s: "nowhere: " in s.notice)


def test_hosts_are_asked_all_at_once_and_nobody_waits_for_a_silent_one(
    server, remote, tmp_path, monkeypatch
):
    """One takes its connection and says nothing: known by what ssh is, a command that hangs."""
    monkeypatch.setattr("dpwatch.viewer.remote.ssh_hosts.PATIENCE_S", 0.2)
    slow = tmp_path / "ssh"
    words = " ".join(server.ssh)
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *"-T silent "*) exec sleep 600;; esac\n{words} "$@"\n'
    )
    slow.chmod(0o755)
    with serving() as hub, rank(hub.place) as send:
        for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
            send(frame)
        quick = SimpleNamespace(ssh=[str(slow)])
        with Viewing(quick, remote, "silent", "node1") as viewing:
            assert viewing.wrong == []
            seen = until(viewing.watcher, has("run", steps=5))
            assert seen.notice == "connecting to silent"


def test_through_a_jump_host(server, remote):
    with serving() as hub, rank(hub.place) as send:
        for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
            send(frame)
        with Viewing(server, remote, "behind") as viewing:
            until(viewing.watcher, has("run", steps=5))
    gone(server)


def test_a_host_with_another_key_is_one_clear_line(server, remote):
    told = command(server, remote, "replaced", "--once")
    assert (told.returncode, told.stdout) == (2, "")
    known = server.folder / "known"
    assert told.stderr == (
        f"dpwatch: replaced: its host key differs from the one in {known}:1: the connection may be "
        "intercepted; if the host has a new key, remove the old one with `ssh-keygen -R` "
        "(replaced's)\n"
    )


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


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        (PROTOCOL_VERSION - 1, "older than this dpwatch's {ours}: upgrade dpwatch on box, in"),
        (PROTOCOL_VERSION + 1, "newer than this dpwatch's {ours}: upgrade dpwatch here"),
    ],
)
def test_a_run_of_another_protocol_says_which_side_to_upgrade(server, remote, protocol, told):
    place = paths.run_dir("other")
    lock = place.try_lock()
    place.write_info(paths.RunInfo("other", "box", os.getpid(), 2.0, protocol=protocol))
    wanted = f"run other on box speaks protocol {protocol}, {told.format(ours=PROTOCOL_VERSION)}"
    with Viewing(server, remote, "node1") as viewing:
        until(viewing.watcher, lambda s: wanted in s.notice)
    os.close(lock)


def test_gpus_of_a_host_without_a_run(server, remote, smi):
    smi.says(A100, A100_USERS)
    with Viewing(server, remote, "node1") as viewing:
        seen = until(viewing.watcher, lambda s: s.gpus and "its PATH has no dpwatch" in s.notice)
        assert [(gpu.host, gpu.index, gpu.util) for gpu in seen.gpus] == [
            ("node1", 0, 0.93), ("node1", 1, 0.0)
        ]  # fmt: skip
        assert seen.gpus[0].processes[0].name == "python"
        assert "start one there with `dpwatch run -- torchrun … train.py`" in seen.notice
        with serving() as hub, rank(hub.place) as send:
            for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
                send(frame)
            seen = until(viewing.watcher, has("run", steps=5))
            assert seen.gpus == ()


def test_gpus_beside_another_host_s_run(server, remote, smi, tmp_path):
    """Two hosts, of which only one has a run: the other's runtime directory is another one."""
    smi.says(A100, A100_USERS)
    with serving() as hub, rank(hub.place) as send:
        for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
            send(frame)
        with Viewing(server, remote, "node1", "node2") as viewing:
            viewing.hosts.hosts[1]._script = script(str(tmp_path), "dpwatch")
            viewing.hosts.hosts[1]._master.kill()
            wanted = "no run on node2: 2 GPUs, 1 in use"
            seen = until(viewing.watcher, lambda s: s.notice == wanted)
            assert {gpu.host for gpu in seen.gpus} == {"node2"}
            assert [view.run.run_id for view in seen.runs] == ["run"]


def test_one_look_has_the_gpus_too(server, remote, smi):
    smi.says(A100, A100_USERS)
    text = command(server, remote, "node1", "--once")
    assert text.returncode == 3
    assert "node1 0 NVIDIA A100-SXM4-80GB   93%   70213.0  81920.0  61  287" in text.stdout
    assert "  python 41873: 70198.0 MiB" in text.stdout
    assert text.stderr.startswith("dpwatch: no run on node1; start one there with `dpwatch run")
    told = command(server, remote, "node1", "--once", "--json")
    found = json.loads(told.stdout)
    assert (found["runs"], [gpu["power_w"] for gpu in found["gpus"]]) == ([], [287.45, 62.1])
    assert found["gpus"][0]["processes"] == [
        {"pid": 41873, "name": "python", "used_bytes": 70198 << 20}
    ]
    smi.says(NO_DRIVER, code=9)
    sick = command(server, remote, "node1", "--once")
    assert sick.stdout == ""
    assert "; nvidia-smi there: NVIDIA-SMI has failed because" in sick.stderr


def test_a_dpwatch_that_is_not_on_the_path(server, remote, tmp_path):
    """The real one, asked for GPUs (there are none here), and told of in what to start."""
    program = Path(sys.executable).with_name("dpwatch")
    told = command(server, remote, "node1", "--once", "--json", "--remote-dpwatch", str(program))
    assert json.loads(told.stdout)["gpus"] == []
    assert f"start one there with `{program} run -- torchrun … train.py`" in told.stderr
    assert list((server.folder / "tmp").iterdir()) == []
    missing = command(server, remote, "node1", "--once", "--remote-dpwatch", "~/no/dpwatch")
    assert "(there is no ~/no/dpwatch: `pip install` it" in missing.stderr


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


@pytest.mark.parametrize("option", ["AllowStreamLocalForwarding no", "DisableForwarding yes"])
def test_a_server_that_forwards_no_sockets_is_told_at_once(server, remote, option):
    """Its refusal comes when a socket is used first: until then all seems well."""
    with refusing(server, option), serving() as hub, rank(hub.place) as send:
        for frame in ddp_run(steps=5, ranks=2):
            send(frame)
        with Viewing(server, remote, "node1") as viewing:
            seen = until(viewing.watcher, lambda s: "forward" in s.notice)
            assert seen.notice.startswith("node1 refuses to forward its runs' sockets")
            assert seen.notice.count("\n") == 0
        told = command(server, remote, "node1", "--once")
    assert told.returncode == 3
    assert "node1 refuses to forward its runs' sockets" in told.stderr
    gone(server)


@contextmanager
def refusing(server, option):
    """The server with one more option in its configuration."""
    usual = server.config.read_text()
    server.stop()
    server.config.write_text(f"{usual}{option}\n")
    server.start()
    yield
    server.stop()
    server.config.write_text(usual)
    server.start()


@pytest.fixture
def short():
    """A folder of a short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def terminal(server, remote, short, tmp_path, monkeypatch):
    """A terminal with `dpwatch ssh` in it, whose temporary files are its own."""
    monkeypatch.setenv("DPWATCH_SSH", " ".join(server.ssh))
    monkeypatch.setenv("DPWATCH_REMOTE_DIR", remote)
    monkeypatch.setenv("TMPDIR", str(short))
    opened = []

    def open_one(*words):
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        opened.append(Terminal(folder, 120, 30, "ssh", *words))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def left_here(short):
    """Files and ssh processes of a viewer whose temporary files lie there."""
    running = [pid for pid in processes_with(f"TMPDIR={short}") if _is_ssh(pid)]
    return running or list(short.glob("dpw-*"))


def _is_ssh(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "ssh"
    except OSError:
        return False


@pytest.mark.skipif(bool(NO_TMUX), reason=NO_TMUX)
@pytest.mark.parametrize(
    ("end", "code"),
    [("q", 0), ("C-c", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129),
     ("closed", None), (signal.SIGKILL, 137)],
)  # fmt: skip
def test_however_it_ends_nothing_is_left(terminal, server, short, end, code):
    with serving() as hub, rank(hub.place) as send:
        for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
            send(frame)
        screen = terminal("node1", "behind")
        screen.until("step 5")
        assert left_here(short)
        if isinstance(end, signal.Signals):
            os.kill(screen.pid("dpwatch"), end)
        elif end == "closed":
            screen.close()
        else:
            screen.keys(end)
        if code is not None:
            left = screen.until(f"EXIT={code}")
            assert "Traceback" not in left
        if end == signal.SIGKILL:  # its folder goes with the next viewer
            eventually(lambda: not server.connections(), "no session is left")
            screen = terminal("node1")
            screen.until("step 5")
            assert len(list(short.glob("dpw-*"))) == 1
            screen.keys("q")
        eventually(lambda: not left_here(short), "nothing is left here")
    gone(server)


@pytest.mark.skipif(bool(NO_TMUX), reason=NO_TMUX)
def test_a_passphrase_is_asked_for_before_the_screen_and_never_on_it(terminal, server, short):
    """Of a host, and of a host's jump host; after that ssh has no terminal to ask at."""
    with serving() as hub, rank(hub.place) as send:
        for frame in list(ddp_run(steps=5, ranks=2))[:-2]:
            send(frame)
        first = terminal("asks")
        first.until("Enter passphrase for key")
        first.keys("C-c")
        first.until("EXIT=130")
        screen = terminal("node1", "behind-asks")
        screen.until("Enter passphrase for key")
        screen.keys(PASSPHRASE, "Enter")
        screen.until("step 5")
        server.stop()
        screen.until("stale for", "node1: ", "behind-asks: ", "trying again")
        server.start()
        seen = screen.until("behind-asks: ", "Permission denied", "trying again", "hung")
        assert "passphrase" not in seen
        assert "node1: " not in seen
        screen.keys("q")
        screen.until("EXIT=0")
        eventually(lambda: not left_here(short), "nothing is left here")


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
from dpwatch.viewer.remote.ssh_hosts import SshHosts
remote, *ssh = sys.argv[1:]
hosts = SshHosts(["node1"], ssh=ssh, remote_dir=remote)
hosts.connect()
print("up", flush=True)
time.sleep(600)
"""
