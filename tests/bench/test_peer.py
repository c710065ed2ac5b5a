"""The comparison's arithmetic, and one small run of it."""

import json
import subprocess
import sys

import pytest

from tests.bench.peer import Sample, Steps, compared, figures, other_cpu_s, phases, table

S = 1_000_000_000
MS = S // 1000


def steps(pid, cpu_ms, *, wall_ms=10, count=1001, began_ns=5 * S):
    """A rank whose first step ends at `began_ns`, and whose every step takes as long."""
    ended = [began_ns + i * wall_ms * MS for i in range(count)]
    cpu = [i * cpu_ms * MS for i in range(count)]
    return Steps(pid, 2000, ended, cpu, [each // 2 for each in cpu])


def test_the_first_step_is_in_no_phase():
    ended = [100 * S, 101 * S, 102 * S, 103 * S, 104 * S]
    assert phases(ended, 2.0) == {"first": (0, 2), "steady": (2, 4)}


def test_a_run_that_ends_early_has_no_steady_state():
    assert phases([0, S, 2 * S], 10.0) == {"first": (0, 2)}
    assert phases([0], 10.0) == {}


def test_the_cpu_of_a_process_that_has_ended_still_counts():
    samples = [Sample(0, {1: 1.0, 2: 0.5}, {}), Sample(1, {1: 2.0, 3: 0.25}, {})]
    assert other_cpu_s(samples, own={1}) == [0.5, 0.75]


def test_a_runs_figures():
    """Two ranks of 4 and 6 ms of CPU a step, and a process that takes a fifth of a core."""
    ranks = [steps(1, 4), steps(2, 6)]
    samples = [
        Sample(s * S, {1: 9.0, 2: 9.0, 3: s / 5}, {1: 100.0, 2: 100.0, 3: 30.0}) for s in range(17)
    ]
    found = figures(ranks, samples, began_ns=3 * S, ended_ns=16 * S, first_s=4.0)
    assert found == pytest.approx({
        "start_s": 2.0,
        "end_s": 1.0,
        "rank_mb": 2.048,
        "extra": 1,
        "extra_mb": 30,
        "extra_cpu_s": 3.0,
        **{f"wall_us.{phase}": 10_000 for phase in ("first", "steady")},
        **{f"process_us.{phase}": 5000 for phase in ("first", "steady")},
        **{f"thread_us.{phase}": 2500 for phase in ("first", "steady")},
        **{f"all_us.{phase}": 6000 for phase in ("first", "steady")},
        **{f"threads_percent_{phase}": 25 for phase in ("first", "steady")},
        **{f"extra_percent_{phase}": 20 for phase in ("first", "steady")},
    })  # fmt: skip


def test_variants_are_compared_within_a_round():
    """A machine twice as slow in the second round changes neither ratio nor difference."""
    rounds = [
        {"plain": {"thread_us.first": 100.0, "start_s": 1.0},
         "dpwatch": {"thread_us.first": 101.0, "start_s": 1.5}},
        {"dpwatch": {"thread_us.first": 202.0, "start_s": 2.5},
         "plain": {"thread_us.first": 200.0, "start_s": 2.0}},
        {"plain": {"thread_us.first": 900.0, "start_s": 9.0}},  # where dpwatch's run failed
    ]  # fmt: skip
    found = compared(rounds)
    assert found["dpwatch/plain"] == {
        "thread_us.first": [1.01, 1.01, 1.01, 1.01],
        "start_s": [0.5, 0.5, 0.5],
    }
    assert found["plain"]["start_s"] == [2.0, 1.0, 9.0]
    rows = list(table(found))
    assert rows[0] == "| | plain | dpwatch | dpwatch/plain |"
    assert rows[2].endswith(
        "| 200 (100 … 900) | 152 (101 … 202) | ×1.01 (1.01 … 1.01), least ×1.01 |"
    )
    assert any(row.endswith("| +0.50 (+0.50 … +0.50) |") for row in rows)


@pytest.mark.slow
@pytest.mark.dist
def test_a_small_run_without_the_peer(tmp_path):
    told = tmp_path / "peer.json"
    code = f"""
from pathlib import Path
from tests.bench import peer
peer.TRACEML = Path({str(tmp_path)!r}, "missing")
peer.main("--rounds 1 --seconds 0.4 --first 0.2 --only 1x1 --json".split() + [{str(told)!r}])
assert not list(peer.descendants())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("TraceML is left out: ")
    (measured,) = json.loads(told.read_text())["1x1"]["rounds"]
    assert measured.keys() == {"plain", "dpwatch"}
    assert measured["plain"]["extra"] == 0 < measured["dpwatch"]["extra"]
    assert all(each["thread_us.steady"] > 0 for each in measured.values())
