"""Every way that a training may end, under `dpwatch run`: told as the operating system has it."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import scripts
from tests.e2e.test_run import dpwatch_run, free_port

pytestmark = [pytest.mark.dist, pytest.mark.scripts]

LEAVES = str(Path(__file__).parent / "leaves.py")
LAST = 8


@pytest.fixture
def env(tmp_path):
    return scripts.environment(
        free_port(), DPWATCH_RUNTIME_DIR=str(tmp_path / "rt"), DPWATCH_HUB_LINGER_S="1"
    )


def told(tmp_path, *command, env, options=()):
    """Runs a command. Returns: how it ended, and its one run."""
    target = tmp_path / "told.json"
    done = dpwatch_run(*command, options=["--json", str(target), *options], env=env)
    (run,) = json.loads(target.read_text())["runs"]
    return done, run


@pytest.mark.parametrize(
    ("way", "code", "reason"),
    [
        ("exit", 1, "exit code 1"),
        ("hook", 1, "RuntimeError: a bad sample"),
        ("mute", 1, "Mute: (no text: its __str__ raises ValueError)"),
        ("_exit", 3, "exit code 3: process"),
        ("killed", 137, "killed by SIGKILL after its goodbye"),
    ],
)
def test_a_failure_is_told_as_one(tmp_path, env, way, code, reason):
    done, run = told(
        tmp_path, sys.executable, LEAVES, way, env=env, options=["--fail-on", "critical"]
    )
    (rank,) = run["ranks"]
    assert done.returncode == code
    assert run["state"] == rank["state"] == "failed"
    assert run["reason"].startswith(f"rank 0: {reason}")
    assert rank["exit"] == (code if code < 128 else 128 - code)
    assert run["command_exit"] == rank["exit"]
    assert {d["kind"] for d in run["diagnoses"]} >= {"rank_lost"}
    assert rank["dropped"] == 0


def test_a_script_that_leaves_by_exit_code_0_has_finished(tmp_path, env):
    done, run = told(tmp_path, sys.executable, LEAVES, "_exit 0", env=env)
    assert (done.returncode, run["state"], run["reason"]) == (0, "finished", "")
    assert run["steps"] == LAST + 1
    assert run["diagnoses"] == [] or "rank_lost" not in {d["kind"] for d in run["diagnoses"]}


@pytest.mark.parametrize("way", ["exit", "raise"])
def test_the_rank_that_left_first_is_the_cause(tmp_path, env, way):
    torchrun = [str(scripts.BIN / "torchrun"), "--nproc-per-node", "2", "--master-port"]
    done, run = told(tmp_path, *torchrun, env["MASTER_PORT"], LEAVES, way, env=env)
    assert done.returncode == 1
    assert run["state"] == "failed"
    assert run["reason"].startswith("rank 1: ")
    (lost,) = [d for d in run["diagnoses"] if d["kind"] == "rank_lost"]
    assert lost["ranks"] == [1]
    assert {rank["state"] for rank in run["ranks"]} == {"failed"}


def test_ctrl_c_is_told_as_that(tmp_path, env):
    """At a terminal, which sends it to the command and to `dpwatch run` alike."""
    target = tmp_path / "told.json"
    command = [sys.executable, "-m", "dpwatch", "run", "--quiet", "--json", str(target),
               "--fail-on", "critical", "--", sys.executable, LEAVES, "ctrl-c"]  # fmt: skip
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(sys.executable, command, env)
    said = b""
    while f"step {LAST}".encode() not in said:
        said += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    os.close(terminal)
    (run,) = json.loads(target.read_text())["runs"]
    assert (run["state"], run["reason"]) == ("failed", "stopped by Ctrl-C")
    assert [d["kind"] for d in run["diagnoses"] if d["severity"] == "critical"] == []


MINDS = """
import os, signal, sys, threading, time, torch
seen, reaped, over = [], [], threading.Event()
signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
def reap():
    while not over.is_set():
        try:
            reaped.append(os.waitpid(-1, 0))
        except ChildProcessError:
            time.sleep(0.01)
threading.Thread(target=reap).start()
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(40):
    weight.square().sum().backward()
    optimizer.step()
    time.sleep(0.02)
over.set()
print(len(seen), reaped)
"""


def test_a_script_sees_no_child_that_is_not_its_own(tmp_path, env):
    script = tmp_path / "minds.py"
    script.write_text(MINDS)
    done, run = told(tmp_path, sys.executable, str(script), env=env)
    assert done.stdout == "0 []\n"
    assert (run["state"], run["steps"]) == ("finished", 40)


FROZEN = """
import os, sys, time
import torch
app = sys.argv[1]
sys.executable, sys.frozen = app, True
import dpwatch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
with dpwatch.watch():
    for _ in range(20):
        weight.square().sum().backward()
        optimizer.step()
        time.sleep(0.05)
print("started again" if os.path.exists(app + ".log") else "not started again")
"""


def test_a_frozen_application_is_not_started_again(tmp_path, env):
    app = tmp_path / "app"
    app.write_text(f'#!/bin/sh\necho "$@" >> {app}.log\n')
    app.chmod(0o755)
    script = tmp_path / "frozen.py"
    script.write_text(FROZEN)
    done = subprocess.run(
        [sys.executable, str(script), str(app)],
        capture_output=True,
        text=True,
        env=env,
        timeout=240,
        check=True,
    )
    assert done.stdout == "not started again\n"
