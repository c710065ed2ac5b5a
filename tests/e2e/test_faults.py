"""Real ranks with real faults, in a script that knows nothing of dpwatch: each is named right."""

import os
import secrets
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dpwatch.cli.run import environment
from dpwatch.viewer.watcher import Watcher
from tests import scripts
from tests.e2e.test_run import free_port

pytestmark = [pytest.mark.dist, pytest.mark.scripts]
SCRIPT = Path(__file__).with_name("faulty.py")
RANKS = 3
GUILTY = 1
AT = 20
DEADLINE_S = 120


class Faulty:
    """The script under torchrun, followed as a viewer does."""

    def __init__(self, fault, tmp_path, words, monitor_s):
        os.environ["DPWATCH_RUNTIME_DIR"] = str(tmp_path / "rt")
        session = secrets.token_hex(3)
        env = scripts.environment(0, DPWATCH_HUB_LINGER_S="2", **_only_ours(environment(session)))
        told = {"steps": 60, "at": AT, "rank": GUILTY, **words}
        self.process = subprocess.Popen(
            [str(scripts.BIN / "torchrun"), "--nproc-per-node", str(RANKS),
             "--monitor-interval", str(monitor_s),
             "--master-port", str(free_port()), str(SCRIPT), fault,
             *(f"{k}={v}" for k, v in told.items())],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.watcher = Watcher()
        self.pids = set()

    def until(self, condition):
        """The run, once it satisfies the condition."""
        deadline = time.monotonic() + DEADLINE_S
        run = None
        while time.monotonic() < deadline:
            snapshot = self.watcher.next(0.1) or self.watcher.snapshot()
            for view in snapshot.runs:
                run = view.run
                self.pids |= {row.pid for row in run.ranks}
                if condition(run):
                    return run
        raise AssertionError(f"not seen; last: {run and (run.state, run.steps, run.diagnoses)}")

    def finding(self, kind):
        """The diagnosis of that kind, once it is there."""
        return said(self.until(lambda run: said(run, kind)), kind)

    def close(self):
        self.watcher.close()
        if self.process.poll() is None:
            self.process.terminate()
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=DEADLINE_S)


def _only_ours(env):
    return {k: env[k] for k in ("PYTHONPATH", "DPWATCH_SESSION", "DPWATCH_RUNTIME_DIR")}


def said(run, kind):
    return next((d for d in run.diagnoses if d.kind == kind), None)


def over(run):
    return run.state in ("finished", "failed", "lost")


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(tmp_path / "rt"))

    @contextmanager
    def start(fault, monitor_s=0.1, **words):
        run = Faulty(fault, tmp_path, words, monitor_s)
        try:
            yield run
        finally:
            run.close()

    return start


PHASES = {
    "dataset": "data",
    "forward": "forward",
    "backward": "backward",
    "host": "other",
    "optimizer": "optimizer",
}


@pytest.mark.parametrize("fault", PHASES)
def test_a_delayed_rank_and_its_phase_are_named_and_no_victim(fault, faulty):
    with faulty(fault) as it:
        run = it.until(lambda run: over(run) and said(run, "straggler"))
        found = said(run, "straggler")
        assert {tuple(a.ranks) for a in run.alerts if a.kind == "straggler"} == {(GUILTY,)}
        assert (found.ranks, found.evidence["phase"]) == ([GUILTY], PHASES[fault])
        assert found.evidence["pattern"] == "constant"
        assert AT - 1 <= found.since_step <= AT + 5
        assert it.process.wait(DEADLINE_S) == 0


def test_a_rank_that_is_slow_now_and_then_is_told_apart(faulty):
    with faulty("host", steps=160, every=10, ms=80) as it:
        run = it.until(lambda run: over(run) and said(run, "straggler"))
        found = said(run, "straggler")
        assert (found.ranks, found.evidence["phase"]) == ([GUILTY], "other")
        assert (found.severity, found.evidence["pattern"]) == ("info", "occasional")


@pytest.mark.parametrize("fault", ["sleep", "spin", "stop", "deadlock", "swallow"])
def test_a_stuck_rank_is_named_while_it_is_stuck_and_forgotten_when_it_goes_on(
    fault, faulty, tmp_path
):
    free = tmp_path / "free"
    with faulty(fault, free=free) as it:
        found = it.finding("hang")
        assert found.ranks == found.evidence["missing"] == [GUILTY]
        assert found.evidence["entered"] == [0, 2]
        assert (found.evidence["op"], found.evidence["group"]) == ("all_reduce", "default")
        assert found.since_step == AT
        assert all("faulty.py:" in where for where in found.evidence["where"].values())
        doing = {"stop": "silent", "spin": "busy", "deadlock": "still"}.get(fault, "still")
        assert found.evidence["doing"] == {str(GUILTY): doing}
        free.touch()
        if fault == "stop":
            stopped = next(pid for pid in it.pids if _is_stopped(pid))
            os.kill(stopped, signal.SIGCONT)
        run = it.until(lambda run: over(run) and not said(run, "hang"))
        (alert,) = [a for a in run.alerts if a.kind == "hang"]
        assert alert.ranks == [GUILTY]
        assert alert.ended_s > alert.began_s
        assert it.process.wait(DEADLINE_S) == 0


def _is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("fault", ["other", "skip", "shape"])
def test_a_rank_that_calls_something_else_is_named(fault, faulty):
    # gloo aborts a rank that it finds out, and a tenth of a second later torchrun kills the others:
    # what they called last would often be lost with them.
    with faulty(fault, monitor_s=2) as it:
        found = it.finding("desync")
        assert found.ranks == found.evidence["missing"] == [GUILTY]
        assert found.evidence["group"] == "default"
        assert str(GUILTY) in found.evidence["calls"]
        assert "faulty.py:" in found.evidence["where"][str(GUILTY)]
        assert found.since_step == AT


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [("kill", -9, "SIGKILL"), ("exit", 3, "exit code 3"), ("error", None, "a bad sample")],
)
def test_a_rank_that_dies_is_named_with_its_exit(fault, code, words, faulty):
    with faulty(fault) as it:
        # A peer's complaint that the connection is closed may be here a moment earlier.
        run = it.until(lambda run: over(run) and run.reason.startswith(f"rank {GUILTY}:"))
        found = said(it.until(lambda run: _named(run) == [GUILTY]), "rank_lost")
        assert run.state in ("lost", "failed")
        # Its launcher may have fetched the exit before the hub could read it.
        assert found.evidence["exit"] in (code, None)
        assert found.evidence["exit"] != code or words in found.text
        assert found.evidence["step"] == AT
        assert f"in step {AT}" in found.text


def _named(run):
    found = said(run, "rank_lost")
    return found.ranks if found else None


def test_a_loss_that_is_no_number_is_named(faulty):
    # At this pace every step's loss is read.
    with faulty("nan", pace=35) as it:
        named = it.until(lambda run: _first_bad(run) is not None)
        found = said(named, "nan_loss")
        assert _first_bad(named) == GUILTY
        assert found.since_step == AT
        assert found.evidence["value"] == "nan"


def _first_bad(run):
    found = said(run, "nan_loss")
    return found and found.evidence["first_rank"]


def test_a_healthy_run_of_a_thousand_steps_is_let_alone(faulty):
    with faulty("none", steps=1000, width=256) as it:
        run = it.until(over)
        assert run.steps == 1000
        spoken = {alert.kind for alert in run.alerts}
        # What this host lacks, and what gloo costs on it, are no faults of the run's.
        assert spoken <= {"cpu_oversubscribed", "comm_bound", "overlap_poor"}
