"""Hubs forked from one process start at once and then run independently."""

import os
import signal

import msgspec

from dpwatch.hub.fork_server import ForkServer
from dpwatch.hub.processes import runs
from dpwatch.runtime import paths
from tests.frames import dp_run
from tests.hubs import has, rank, until, watching
from tests.processes import eventually


def test_hubs_outlive_the_fork_server_and_each_other():
    fork_server = ForkServer()
    places = [paths.run_dir(name) for name in ("one", "two")]
    for place in places:
        fork_server.start(place, {"DPWATCH_SESSION": "abc", "DPWATCH_HUB_LINGER_S": "60"})
    infos = [eventually(place.read_info, "a hub's run.json") for place in places]
    assert [info.session for info in infos] == ["abc", "abc"]
    assert len({info.hub_pid for info in infos}) == 2
    fork_server.start(places[0], {})  # there is one
    fork_server.close()
    os.kill(infos[0].hub_pid, signal.SIGTERM)
    eventually(lambda: not places[0].path.exists(), "the first hub's end")
    with rank(places[1]) as send, watching() as watcher:
        for frame in dp_run(steps=3):
            send(msgspec.structs.replace(frame, run_id="two"))
        assert until(watcher, has("two", state="finished", steps=3))
    assert runs(infos[1].hub_pid)
    os.kill(infos[1].hub_pid, signal.SIGTERM)
    eventually(lambda: not places[1].path.exists(), "the second hub's end")


def test_a_fork_server_ends_with_its_owner():
    fork_server = ForkServer()
    fork_server._process.stdin.close()  # as when its owner is killed
    assert fork_server._process.wait(60) == 0
    fork_server.close()
