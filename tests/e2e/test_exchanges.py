"""`dpwatch run` in front of ranks that communicate in many ways: what is told of each."""

import json
import sys
import time
from pathlib import Path

import pytest

from tests import scripts
from tests.e2e.test_run import dpwatch_run, free_port

pytestmark = [pytest.mark.dist, pytest.mark.scripts]

HERE = Path(__file__).parent
FLOAT = 4
WIDTH, ROWS, PARTS = 64, 8, 4
RARELY, TOGETHER = 4, 20
"""As in `exchanges`."""

TIMES = ("total", "exposed", "wait")
PART = ROWS * WIDTH * FLOAT
LAYER = (WIDTH + 1) * WIDTH * FLOAT

OF_THE_HOST = {"cpu_oversubscribed", "straggler", "comm_bound", "overlap_poor"}
"""What a loaded machine may cause in any run."""


@pytest.fixture
def told(tmp_path):
    """Runs a script to its end and returns the run's summary."""

    def run(*script, returncode=0, **more):
        port, summary = free_port(), tmp_path / "summary.json"
        runtime = {"DPWATCH_RUNTIME_DIR": str(tmp_path / "rt"), "DPWATCH_HUB_LINGER_S": "1"}
        env = scripts.environment(port, **runtime, **more)
        done = dpwatch_run(*map(str, script), options=["--json", str(summary)], env=env)
        assert (done.returncode == 0) is (returncode == 0), done.stderr
        (found,) = json.loads(summary.read_text())["runs"]
        return found

    return run


@pytest.fixture
def exchange(told, tmp_path):
    def run(way, **options):
        torchrun = [scripts.BIN / "torchrun", "--nproc-per-node", "2"]
        port = ["--master-port", free_port()]
        return told(*torchrun, *port, HERE / "exchanges.py", way, tmp_path / "store", **options)

    return run


def by_op(run, group=None):
    found = [each for each in run["collectives"] if group in (None, each["group"])]
    return {each["op"]: each for each in found}


def kinds(run):
    alerts = {alert["kind"] for alert in run["alerts"]}
    return (alerts | {each["kind"] for each in run["diagnoses"]}) - OF_THE_HOST


def times_fit(run, unknown=()):
    """No time exceeds the step, and none is unknown but for these."""
    for rank in run["ranks"]:
        longest = rank["step_ms"]["mean"] * 1.001
        times = [rank["comm_ms"][name] for name in TIMES]
        known = [ms for ms in times if ms is not None]
        assert all(0 <= ms <= longest for ms in known), rank
        assert {name for name in TIMES if rank["comm_ms"][name] is None} <= set(unknown)
    return True


def test_messages_are_told_with_their_bytes_and_their_time(exchange):
    run = exchange("messages")
    assert run["backend"] == "gloo"  # which the script has left to torch
    assert {(m["src"], m["dst"]): m["bytes_per_step"] for m in run["messages"]} == {
        (0, 1): 2 * PART, (1, 0): 2 * PART,
    }  # fmt: skip
    for rank in run["ranks"]:
        assert rank["sent_bytes_per_step"] == rank["received_bytes_per_step"] == 2 * PART
        assert rank["comm_ms"]["exposed"] > 0
    assert {op: each["count_per_step"] for op, each in by_op(run).items()} == {"send": 2, "recv": 2}
    assert times_fit(run)
    assert kinds(run) == set()


def test_a_pipeline_schedules_messages_too(exchange):
    run = exchange("pipeline")
    moved = PARTS * PART
    assert {(m["src"], m["dst"]): m["bytes_per_step"] for m in run["messages"]} == {
        (0, 1): moved, (1, 0): moved,
    }  # fmt: skip
    assert {rank["sent_bytes_per_step"] for rank in run["ranks"]} == {moved}
    assert times_fit(run, unknown=["total"])  # nobody waits for its sends
    assert kinds(run) == set()


def test_rare_calls_overlapping_ones_and_futures(exchange):
    run = exchange("mixed")
    world, pair = by_op(run, "default"), by_op(run, "ranks 0,1")
    at_most_one = 1 / (run["steps"] - 2)  # more or fewer, where the window ends
    assert world["reduce"]["count_per_step"] == pytest.approx(1 / RARELY, abs=at_most_one)
    each = RARELY * 1000
    nbytes = each * world["reduce"]["count_per_step"]
    assert world["reduce"]["bytes_per_step"] == pytest.approx(nbytes, abs=1)
    assert world["all_reduce"]["bytes_per_step"] == LAYER // 2  # in half precision
    assert world["all_gather"]["bytes_per_step"] == WIDTH * FLOAT
    assert pair["all_reduce"]["count_per_step"] == TOGETHER
    assert all(each["latency_ms"]["p50"] > 0 for each in run["collectives"])
    assert world["all_gather"]["exposed_ms_per_step"] > 0
    assert times_fit(run)
    first, second = run["ranks"]
    assert first["comm_ms"]["wait"] > 20 > second["comm_ms"]["wait"]


def test_ranks_that_leave_and_come_back_together(exchange):
    run = exchange("again")
    assert run["state"] == "finished"
    found = {(each["op"], each["group"]): each["count_per_step"] for each in run["collectives"]}
    assert found["all_reduce", "ranks 0,1"] == pytest.approx(1, abs=0.1)
    assert found["all_reduce", "default"] == 1
    assert kinds(run) == set()


def test_a_process_that_takes_anothers_place(told):
    run = told(sys.executable, HERE / "succession.py", DPWATCH_RUN_ID="succession")
    assert run["state"] == "finished"
    assert [rank["steps"] for rank in run["ranks"]] == [120, 40]
    # Rank 0's last steps hold the broadcast of a model that was made anew, too.
    assert run["balance"]["traffic_device0_over_median"] == pytest.approx(1, rel=0.05)
    assert not {"desync", "rank_lost", "straggler"} & {a["kind"] for a in run["alerts"]}


def test_a_rank_that_strays_is_named_while_the_others_wait(exchange):
    run = exchange("validation", returncode=1)
    (strayed,) = (alert for alert in run["alerts"] if alert["kind"] == "desync")
    assert 0 in strayed["ranks"]  # of two, nothing says who is right
    assert "called broadcast" in strayed["text"]
    assert strayed["began_s"] <= time.time() - 6  # the time-out is 12 s
    assert run["diagnoses"][0]["kind"] == "desync"
    assert run["reason"].endswith("gave up waiting")


def test_a_thousand_healthy_steps_of_three_kinds_raise_nothing(exchange):
    run = exchange("healthy")
    assert run["state"] == "finished"
    assert {rank["steps"] for rank in run["ranks"]} == {3000}
    assert {rank["dropped"] for rank in run["ranks"]} == {0}
    assert kinds(run) <= {"memory_growth"}  # three models after another
