"""A rank's request for a hub, and who may fulfil it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dpwatch.runtime import hub_request, paths, spawn
from dpwatch.runtime.hub_request import HubRequest
from dpwatch.viewer.local_runs import LocalRuns
from dpwatch.wire.messages import PROTOCOL_VERSION


@pytest.fixture
def started(monkeypatch):
    """Where hubs would have been started, and with which variables."""
    places = []
    monkeypatch.setattr(spawn, "ensure_hub", lambda place, more: places.append((place, more)))
    return places


def wanted(**fields):
    told = {"pid": os.getpid(), "namespace": hub_request._pid_namespace(),
            "protocol": PROTOCOL_VERSION, "environment": {}}  # fmt: skip
    return HubRequest(**{**told, **fields})


def gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_request_carries_only_what_the_hub_needs(monkeypatch):
    for name, value in {"MASTER_ADDR": "node0", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1",
                        "DPWATCH_SESSION": "abc", "SECRET": "x"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    place = paths.run_dir("run")
    hub_request.request_hub(place)
    told = hub_request.read(place)
    assert told.environment == {
        "MASTER_ADDR": "node0",
        "DPWATCH_SESSION": "abc",
        "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"],
        "DPWATCH_SPREAD": "1",
        "DPWATCH_NODE_RANK": "1",
    }
    assert place.wanted_file.stat().st_mode & 0o777 == 0o600
    hub_request.withdraw(place)
    assert hub_request.read(place) is None


def test_another_process_s_request_is_not_withdrawn():
    place = paths.run_dir("run")
    hub_request.request_hub(place)
    text = place.wanted_file.read_text().replace(f'"pid":{os.getpid()}', '"pid":1')
    place.wanted_file.write_text(text)
    hub_request.withdraw(place)
    assert hub_request.read(place).pid == 1


@pytest.mark.parametrize(
    ("fields", "met"),
    [
        ({}, True),
        ({"protocol": PROTOCOL_VERSION + 1}, False),
        ({"namespace": "pid:[1]"}, False),  # another container's, whose pids mean nothing here
        ({"pid": None}, False),
    ],
)
def test_who_can_fulfil_a_request(started, fields, met):
    if "pid" in fields:
        fields = {"pid": gone()}
    place = paths.run_dir("run")
    assert spawn.fulfil(place, wanted(**fields)) is met
    assert len(started) == met


def test_no_hub_is_started_beside_a_running_one(started):
    place = paths.run_dir("run")
    held = place.try_lock()
    assert not spawn.fulfil(place, wanted())
    os.close(held)


def test_dpwatch_run_fulfils_its_own_ranks_requests_at_once(started, monkeypatch):
    monkeypatch.setenv(hub_request.SESSION, "abc")
    place = paths.run_dir("run")
    hub_request.request_hub(place)
    assert LocalRuns("xyz")() == []
    assert started == []
    runs = LocalRuns("abc")
    assert runs() == []
    assert [(each.run_id, more[hub_request.SESSION]) for each, more in started] == [("run", "abc")]
    assert runs.is_starting_hub
    assert runs() == []
    assert len(started) == 1  # it is under way


def test_a_viewer_fulfils_a_request_nobody_has_fulfilled(started):
    place = paths.run_dir("run")
    hub_request.request_hub(place)
    runs = LocalRuns()
    assert runs() == []
    assert started == []
    long_ago = time.time() - 10
    os.utime(place.wanted_file, (long_ago, long_ago))
    assert runs() == []
    assert len(started) == 1


def test_a_dead_rank_s_directory_is_removed():
    place = paths.run_dir("run")
    hub_request.request_hub(place)
    told = place.wanted_file.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{gone()}')
    place.wanted_file.write_text(told)
    assert LocalRuns()() == []
    assert not place.path.exists()


def test_an_invalid_request_is_none():
    place = paths.run_dir("run")
    for text in ("", "{", '{"pid": -1}', "[]"):
        place.wanted_file.write_text(text)
        assert hub_request.read(place) is None
    place.wanted_file.unlink()
    os.mkfifo(place.wanted_file)
    assert hub_request.read(place) is None


def test_a_session_is_alive_while_its_dpwatch_run_is(private_runtime):
    session = hub_request.Session(private_runtime, "abc")
    assert hub_request.session_is_alive(private_runtime, "abc")
    assert not hub_request.session_is_alive(private_runtime, "xyz")
    session.close()
    assert not hub_request.session_is_alive(private_runtime, "abc")
    assert list(private_runtime.iterdir()) == []


# -- what is started ---------------------------------------------------------------------------


def test_an_interpreter_is_itself():
    assert spawn.python() == sys.executable


@pytest.mark.parametrize("name", ["app", "python-app", "blender", "uwsgi"])
@pytest.mark.parametrize("frozen", [True, False])
def test_an_application_is_never_started(monkeypatch, tmp_path, name, frozen):
    app = tmp_path / name
    app.write_text("#!/bin/sh\n")
    app.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(app))
    monkeypatch.setattr(sys, "_base_executable", str(app))
    monkeypatch.setattr(spawn.spawn, "get_executable", lambda: str(app))
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert spawn.python() == os.path.join(sys.exec_prefix, "bin", version)
    for prefix in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, prefix, str(tmp_path))
    assert spawn.python() is None
    with pytest.raises(OSError, match="not a Python interpreter"):
        spawn.ensure_hub(paths.run_dir("run"))


def test_one_that_is_called_like_an_interpreter_is_not_started_where_it_is_frozen(
    monkeypatch, tmp_path
):
    app = tmp_path / "python3"
    app.write_text("#!/bin/sh\n")
    app.chmod(0o755)
    for name in ("executable", "_base_executable"):
        monkeypatch.setattr(sys, name, str(app))
    for name in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    assert spawn.python() == str(app)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(spawn.spawn, "get_executable", lambda: None)
    assert spawn.python() is None


def test_a_sigchld_handler_of_the_script_is_noticed():
    from torch.utils.data._utils import signal_handling as torchs

    def mine(number, frame):
        pass

    before = signal.getsignal(signal.SIGCHLD)
    was_set = torchs._SIGCHLD_handler_set
    try:
        for handler, minds in ((signal.SIG_DFL, False), (signal.SIG_IGN, False), (mine, True)):
            signal.signal(signal.SIGCHLD, handler)
            assert spawn.handles_sigchld() is minds
            torchs._SIGCHLD_handler_set = False
            torchs._set_SIGCHLD_handler()  # as a DataLoader with workers does, on top of it
            assert signal.getsignal(signal.SIGCHLD) is not handler
            assert spawn.handles_sigchld() is minds
    finally:
        torchs._SIGCHLD_handler_set = was_set
        signal.signal(signal.SIGCHLD, before)
