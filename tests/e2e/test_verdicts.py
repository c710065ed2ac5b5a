"""Kinds of trouble that were reported of real trainings: the right verdict, live and afterwards.

The same in the screen's snapshots while it runs, in the JSON, on stderr, and by `--fail-on`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from dpwatch.viewer.watcher import Watcher
from tests import scripts
from tests.e2e.test_run import free_port

pytestmark = [pytest.mark.dist, pytest.mark.scripts]
SCRIPT = Path(__file__).with_name("kinds.py")
DEADLINE_S = 240
HOSTS_OWN = {"cpu_oversubscribed", "comm_bound", "overlap_poor", "input_bound"}
"""What a host that lacks cores is said to lack, whatever the script."""


class Seen(NamedTuple):
    """What was said: while it ran (kind, severity, ranks), in the end, and how it ended."""

    live: set
    run: dict
    errors: str
    code: int

    def said(self, kind):
        """The diagnosis of that kind in the end."""
        return next((d for d in self.run["diagnoses"] if d["kind"] == kind), None)

    @property
    def alarms(self):
        """Kinds and ranks of all critical findings there ever were."""
        live = {(kind, ranks) for kind, severity, ranks in self.live if severity == "critical"}
        told = [*self.run["alerts"], *self.run["diagnoses"]]
        return live | {(d["kind"], tuple(d["ranks"])) for d in told if d["severity"] == "critical"}


@pytest.fixture
def see(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(tmp_path / "rt"))

    def start(kind, ranks):
        port = free_port()
        env = scripts.environment(
            port, DPWATCH_RUNTIME_DIR=str(tmp_path / "rt"), DPWATCH_HUB_LINGER_S="2"
        )
        told = tmp_path / "summary.json"
        options = ["--json", str(told), "--fail-on", "critical"]
        launch = [str(scripts.BIN / "torchrun"), "--nproc-per-node", str(ranks)]
        process = subprocess.Popen(
            [sys.executable, "-m", "dpwatch", "run", *options, "--", *launch,
             "--master-port", str(port), str(SCRIPT), kind],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            live = _watch(process)
            errors = process.communicate(timeout=DEADLINE_S)[1]
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(DEADLINE_S)
        (run,) = json.loads(told.read_text())["runs"]
        return Seen(live, run, errors, process.returncode)

    return start


def _watch(process):
    """Follows as a viewer does, until the command is over."""
    watcher, live = Watcher(), set()
    deadline = time.monotonic() + DEADLINE_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            snapshot = watcher.next(0.2) or watcher.snapshot()
            live |= {
                (d.kind, d.severity, tuple(d.ranks))
                for view in snapshot.runs
                for d in view.run.diagnoses
            }
    finally:
        watcher.close()
    return live


CAUSES = {
    "stops_early": (4, "hang", (1,), "Rank 1 has finished after 18 steps"),
    "fewer_batches": (3, "desync", (2,), "Rank 2 called barrier"),
    "skips_batch": (3, "desync", (1,), "Rank 1 abandoned a pass that the others completed"),
    "validates_alone": (3, "desync", (0,), "Rank 0 called broadcast"),
    "wrong_world": (2, "hang", (2,), "Rank 2 has not reached init_process_group at"),
    "members_only": (4, "desync", (0, 1, 2, 3), "Ranks disagree about the members of"),
    "loader_stuck": (3, "hang", (1,), "Rank 1 has not entered all_reduce"),
}
ADVICE = {
    "wrong_world": "the launcher has started 2",
    "loader_stuck": "waits for a batch from its DataLoader at",
    "skips_batch": "OutOfMemoryError",
}


@pytest.mark.parametrize("kind", CAUSES)
def test_the_cause_is_named_before_and_after_the_end_and_no_victim_ever(kind, see):
    ranks, finding, guilty, words = CAUSES[kind]
    seen = see(kind, ranks)
    if kind == "members_only" and seen.code == 0:
        pytest.skip("the race went well: the groups' ranks found each other")
    assert seen.code != 0
    assert seen.run["state"] == "failed"
    assert seen.alarms == {(finding, guilty)}
    first = seen.run["diagnoses"][0]
    assert (first["kind"], first["severity"], tuple(first["ranks"])) == (
        finding, "critical", guilty
    )  # fmt: skip
    assert words in first["text"]
    assert words in seen.run["reason"]
    assert "gave up waiting" in seen.run["reason"]
    assert seen.run["reason"] in seen.errors
    assert first["text"] in seen.errors
    assert ADVICE.get(kind, "") in first["text"]
    if kind not in ("stops_early", "members_only"):  # these may end at once
        assert (finding, guilty) in {(k, r) for k, _, r in seen.live}


def test_a_worker_of_a_data_loader_that_died_is_named(see):
    seen = see("loader_killed", 3)
    found = seen.said("rank_lost")
    assert found["ranks"] == [1]
    assert "DataLoader worker (pid" in found["text"]
    assert "A worker process of its DataLoader died" in found["text"]
    assert seen.run["reason"].startswith("rank 1: RuntimeError: DataLoader worker")
    assert {ranks for _, ranks in seen.alarms} == {(1,)}


@pytest.mark.parametrize("kind", ["server", "joins", "slow_disk"])
def test_what_only_looks_like_trouble_is_no_alarm(kind, see):
    seen = see(kind, 3)
    assert (seen.code, seen.run["state"], seen.alarms) == (0, "finished", set())
    spoken = {alert["kind"] for alert in seen.run["alerts"]} - HOSTS_OWN
    if kind == "slow_disk":
        for found in (alert for alert in seen.run["alerts"] if alert["kind"] == "hang"):
            assert found["ranks"] == [0]
            assert "is stuck" in found["text"]
        spoken -= {"hang"}
    assert spoken - {"straggler", "wait_in_turn"} == set()


@pytest.mark.parametrize(
    ("kind", "pattern", "phase", "words"),
    [
        ("pauses", "pauses", "other", "garbage collector"),
        ("lengths", "varying", "forward", "buckets of similar length"),
    ],
)
def test_waits_that_nobody_causes_alone_are_told_with_their_cost(kind, pattern, phase, words, see):
    seen = see(kind, 3)
    found = seen.said("wait_in_turn")
    assert (found["evidence"]["pattern"], found["evidence"]["phase"]) == (pattern, phase)
    assert 0.2 <= found["evidence"]["cost"] <= 0.7
    assert found["evidence"]["evenness"] >= 0.8
    assert words in found["text"]
    assert "straggler" not in {alert["kind"] for alert in seen.run["alerts"]}


@pytest.mark.parametrize(
    ("kind", "pattern", "words"),
    [("call_each", "many_calls", "number of calls"), ("without_no_sync", "repeated", "no_sync()")],
)
def test_many_calls_are_told_from_many_bytes(kind, pattern, words, see):
    found = see(kind, 2).said("comm_bound")
    assert found["evidence"]["pattern"] == pattern
    assert words in found["text"]


def test_what_one_rank_keeps_is_a_leak_of_that_rank_at_its_true_rate(see):
    seen = see("keeps", 3)
    found = seen.said("memory_growth")
    assert found["ranks"] == [0]
    true = 3 * 64 * 2048 * 4
    assert found["evidence"]["bytes_per_step"] == pytest.approx(true, rel=0.2)
    assert "DistributedDataParallel" not in json.dumps(seen.run["diagnoses"])
