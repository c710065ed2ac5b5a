"""One training over four hosts that have a network, a name and a clock of their own; and faults."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpwatch.runtime import paths
from dpwatch.runtime.curve_keys import make_keys
from dpwatch.runtime.launcher_env import FIRST_PORT, PORTS
from dpwatch.viewer.watcher import Watcher
from tests import netns

MISSING = netns.missing()
pytestmark = [
    pytest.mark.dist,
    pytest.mark.scripts,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]

AHEAD_S = [0, 5_000, -1_000, 900_000]
"""How far each host's monotonic clock is ahead of this machine's."""

EARLY = 16
"""A curve that goes back to the beginning has a step before this: of several it keeps the peaks."""
RANKS = 8
PARAMS_BYTES = (64 * 256 + 256) * 4
STEP_BYTES = PARAMS_BYTES + 4
"""DDP's bucket, and the flag that tells the ranks to stop."""

DEADLINE_S = 180
SCRIPT = Path(__file__).with_name("ddp_hosts.py")


class Training:
    """torchrun under `dpwatch run` on every host, and a viewer at the head."""

    def __init__(self, hosts, folder):
        self.hosts = hosts
        self.stop_file = folder / "stop"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DPWATCH", "PYTHONPATH"))}
        self.env = {
            **kept,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
            "DPWATCH_KEYS": str(folder / "keys"),
        }
        self.commands = [self._start(host) for host in hosts]
        self.watcher = Watcher(places=lambda: self.runs(0))

    def _start(self, host):
        words = [
            sys.executable, "-m", "dpwatch", "run", "--json", str(host.folder / "out.json"), "--",
            str(Path(sys.executable).parent / "torchrun"),
            "--nnodes", str(len(self.hosts)), "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.hosts[0].address}:{netns.PORT}",
            "--rdzv-id", "e2e", "--local-addr", host.address,
            str(SCRIPT), str(self.stop_file), "50",
        ]  # fmt: skip
        with (host.folder / "output").open("w") as output:
            return host.start(*words, env=self.env, stdout=output, stderr=subprocess.STDOUT)

    def runs(self, number):
        found = map(paths.RunDir, self.hosts[number].runtime.iterdir())
        return [place for place in found if place.read_info() and place.has_hub()]

    def hub_pid(self, number):
        places = self.runs(number)
        return places[0].read_info().hub_pid if places else None

    def kill_hub(self, number):
        """Returns: a condition, that another one is in its place."""
        before = self.hub_pid(number)
        os.kill(before, signal.SIGKILL)
        return lambda view: self.hub_pid(number) not in (None, before)

    def until(self, what, condition, watcher=None):
        """Follows at the head until the run is as it should be."""
        watcher = watcher or self.watcher
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert all(each.poll() is None for each in self.commands), self.output()[-8000:]
            snapshot = watcher.next(0.2)
            live = [v for v in snapshot.runs if v.connection == "live"] if snapshot else []
            if live and condition(live[0]):
                return live[0]
        raise AssertionError(
            f"never came: {what}; last {watcher.snapshot()}\n{self.output()[-8000:]}"
        )

    def until_all_step(self, what, more=10):
        """Until every rank is known to be further than the furthest is now."""
        now = self.watcher.snapshot().runs
        goal = more + max((row.steps for view in now for row in view.run.ranks), default=0)
        return self.until(what, lambda v: all_run(v) and min(steps_of(v)) >= goal)

    def output(self):
        return "\n".join((host.folder / "output").read_text() for host in self.hosts)

    def finish(self):
        self.stop_file.touch()
        codes = [each.wait(DEADLINE_S) for each in self.commands]
        assert codes == [0] * len(codes), self.output()
        return [json.loads((host.folder / "out.json").read_text()) for host in self.hosts]

    def close(self):
        self.watcher.close()
        for each in self.commands:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
            each.wait(DEADLINE_S)


@contextmanager
def training(folder):
    folder.chmod(0o700)
    make_keys(folder / "keys")
    with netns.hosts(folder, AHEAD_S) as hosts:
        started = Training(hosts, folder)
        try:
            yield started
        finally:
            started.close()


def steps_of(view):
    return [row.steps for row in view.run.ranks]


def states_of(view, *ranks):
    return [view.run.ranks[r].state for r in ranks]


def all_run(view):
    return (
        len(view.run.ranks) == RANKS
        and set(states_of(view, *range(RANKS))) == {"running"}
        and len(view.run.other_hosts) == len(AHEAD_S) - 1
        and not any(host.silent_s for host in view.run.other_hosts)
    )


def check_clocks(view):
    if not netns.has_time_namespaces():
        return
    for host, ahead_s in zip(view.run.other_hosts, AHEAD_S[1:], strict=True):
        off_ms = abs(host.clock_offset_ms + ahead_s * 1e3)
        assert off_ms <= host.clock_error_ms, host
        assert host.clock_error_ms < 100, host


def check_bytes(run):
    """A step's payload and what a ring sends of it, whatever was lost on the way."""
    (reduced,) = [each for each in run["collectives"] if each["op"] == "all_reduce"]
    assert reduced["bytes_per_step"] == STEP_BYTES
    ring = [2 * (RANKS - 1) * nbytes // RANKS for nbytes in (PARAMS_BYTES, 4)]
    assert {row["sent_bytes_per_step"] for row in run["ranks"]} == {sum(ring)}


def test_four_hosts_are_one_run_through_every_fault(tmp_path):
    with training(tmp_path) as run:
        view = run.until_all_step("eight ranks of four hosts", more=20)
        assert view.run.hosts == [host.name for host in run.hosts]
        assert len({row.pid for row in view.run.ranks}) == RANKS
        check_clocks(view)

        # A node's own viewer sees its own ranks, and where the rest is.
        there = Watcher(places=lambda: run.runs(3))
        local = run.until("the node's own view", lambda v: v.run.note, there)
        there.close()
        assert [row.rank for row in local.run.ranks] == [6, 7]
        assert run.hosts[0].address in local.run.note

        # The head dies: its successor has what was there, and the others come back to it.
        run.until("the head's successor", run.kill_hub(0))
        view = run.until_all_step("all after the head's death")
        assert all(curve.steps[0] < EARLY for curve in view.history.rank_step_ms)
        assert view.history.loss.steps[0] == 0
        check_clocks(view)

        # A node's hub dies.
        run.until("a node's successor", run.kill_hub(2))
        view = run.until_all_step("all after a node's hub's death")
        assert all(curve.steps[0] < EARLY for curve in view.history.rank_step_ms)

        # Hubs are cut off from each other while training goes on.
        port = FIRST_PORT + zlib.crc32(view.run.run_id.encode()) % PORTS
        run.hosts[3].shape(port, "8bit")
        view = run.until("a host not heard of", lambda v: v.run.other_hosts[2].silent_s)
        then = steps_of(view)
        assert states_of(view, 6, 7) == ["stale", "stale"]
        view = run.until("training goes on", lambda v: v.run.ranks[0].steps > then[0] + 20)
        assert states_of(view, 6, 7) == ["stale", "stale"]
        assert steps_of(view)[6:] == then[6:]
        assert not {d.kind for d in view.run.diagnoses} & {"hang", "rank_lost", "desync"}
        assert run.hosts[3].name in view.run.reason
        run.hosts[3].unshape()
        view = run.until_all_step("all after the cut")
        assert view.run.other_hosts[2].resent >= 1

        # A slow and lossy way between hubs: late, dropped, and right in the end.
        run.hosts[1].shape(port, "400kbit", queue=8)
        lossy_at = steps_of(view)[0]
        run.until("training goes on", lambda v: v.run.ranks[0].steps > lossy_at + 50)
        run.hosts[1].unshape()
        run.until_all_step("all after losses")

        # A host's whole network goes, so training stands still; and comes back.
        run.hosts[2].link("down")
        run.until("a host not heard of", lambda v: v.run.other_hosts[1].silent_s)
        run.hosts[2].link("up")
        view = run.until_all_step("all after the link", more=150)  # the window of recent steps
        check_clocks(view)

        head, *nodes = (told["runs"] for told in run.finish())
        (whole,) = head
        check_bytes(whole)
        (reduced,) = [each for each in whole["collectives"] if each["op"] == "all_reduce"]
        assert reduced["count_per_step"] == pytest.approx(2.0, abs=0.02)
        told = dict(re.findall(r"rank (\d) did (\d+) steps", run.output()))
        assert {str(row["rank"]): str(row["steps"]) for row in whole["ranks"]} == told
        assert whole["state"] == "finished"
        missed = [row["missed_frames"] for row in whole["ranks"]]
        dropped = [row["dropped"] for row in whole["ranks"]]
        assert [records > 0 for records in dropped] == [frames > 0 for frames in missed]
        assert sum(missed) < 200  # of two killed hubs, a few seconds each
        assert missed[2:4] == missed[6:8] == [0, 0]  # theirs were only cut off
        assert [len(runs[0]["ranks"]) for runs in nodes] == [2, 2, 2]
