"""`dpwatch stacks` of real ranks: where each stands, and why one does not answer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import DEADLINE_S, dpwatch, environment, eventually

pytestmark = pytest.mark.dist
SCRIPT = Path(__file__).with_name("standing.py")


def at(function):
    """`file:line function` of the line that says `# here`."""
    lines = SCRIPT.read_text().splitlines()
    begins = next(i for i, line in enumerate(lines) if line.startswith(f"def {function}("))
    number = next(i for i in range(begins, len(lines)) if lines[i].endswith("# here"))
    return f"standing.py:{number + 1} {function}"


@pytest.fixture
def ranks(tmp_path):
    freed = tmp_path / "free"
    env = environment(WORLD_SIZE="2", DPWATCH_RUN_ID="standing", DPWATCH_HUB_LINGER_S="2")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(freed)],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        yield processes
        freed.touch()
        assert [process.wait(DEADLINE_S) for process in processes] == [0, 0]
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def seen(*arguments):
    """What the command says in JSON, by rank, once both ranks are there."""
    done = dpwatch("stacks", "--json", *arguments)
    if done.returncode:
        return None
    told = json.loads(done.stdout)
    assert told["schema"] == "dpwatch.stacks/1"
    (run,) = told["runs"]
    return {each["rank"]: each for each in run["ranks"]}


def stands(rank, function):
    """Whether its training thread's innermost line of its own is that one."""
    thread = rank["threads"][0] if rank["threads"] else None
    return thread is not None and thread["frames"][thread["theirs"] or 0].endswith(at(function))


def test_every_rank_is_told_with_its_line_and_a_stopped_one_with_the_reason(ranks):
    def both():
        told = seen() or {}
        return len(told) == 2 and stands(told[0], "waits") and stands(told[1], "loops")

    eventually(both, "both ranks at their lines")
    text = dpwatch("stacks")
    assert (text.returncode, text.stderr) == (0, "")
    assert f"> {os.path.relpath(SCRIPT)}" in text.stdout or at("loops") in text.stdout
    for r, function in enumerate(("waits", "loops")):
        assert f"rank {r}: at " in text.stdout
        assert at(function) in text.stdout
    only = dpwatch("stacks", "1")
    assert at("loops") in only.stdout
    assert f"MainThread (trains) · tid {ranks[1].pid}" in only.stdout
    assert at("waits") not in only.stdout

    ranks[1].send_signal(signal.SIGSTOP)
    told = seen()
    assert told[0]["standing"] == "answered"
    assert told[1]["standing"] == "silent"
    assert "its process is stopped" in told[1]["why"]
    ranks[1].send_signal(signal.SIGCONT)
    eventually(lambda: seen()[1]["standing"] == "answered", "an answer after SIGCONT")

    wrong = dpwatch("stacks", "7")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "dpwatch: there is no rank 7; this host has ranks 0-1\n"


def test_without_a_run_it_is_one_line_and_exit_code_3():
    done = dpwatch("stacks")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no live run" in done.stderr
    assert dpwatch("stacks", "first").returncode == 2
    assert "examples:" in dpwatch("stacks", "--help").stdout
