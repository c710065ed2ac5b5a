"""`dpwatch run` as a wrapper: what passes through it, and what is said."""

import json
import os
import signal
import subprocess
import sys

import pytest

from dpwatch.cli import run
from dpwatch.cli.command import Command
from dpwatch.runtime import paths
from dpwatch.runtime.paths import RuntimeDirError
from tests.processes import dpwatch, environment

PYTHON = sys.executable


def started(*command, **more):
    return subprocess.Popen(
        [PYTHON, "-m", "dpwatch", "run", "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(**more),
    )


def test_output_and_exit_code_pass_through():
    done = dpwatch("run", "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout) == (5, "out\n")
    assert done.stderr.startswith("err\n")
    assert "no process of this command trained" in done.stderr
    assert dpwatch("run", "--quiet", "--", "sh", "-c", "echo err >&2").stderr == "err\n"
    assert dpwatch("run", "true").returncode == 0  # the dashes may be left out


def test_what_it_prints_is_told_unless_the_user_says_no():
    told = 'echo "$DPWATCH_OUTPUT"'
    assert dpwatch("run", "--quiet", "--", "sh", "-c", told).stdout == "\n"
    assert dpwatch("run", "--quiet", "--no-output", "--", "sh", "-c", told).stdout == "0\n"


def test_a_signal_that_ends_it_is_told_as_a_shell_does():
    assert dpwatch("run", "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no command given"),
        (["--"], 2, "no command given"),
        (["--", "/no/such/command"], 127, "No such file"),
        (["--", "/"], 126, "Permission denied"),
        (["--json", "/no/such/folder/x.json", "--", "true"], 2, "--json"),
        (["--fail-on", "nonsense", "--", "true"], 2, "gil_bound"),
        (["--magic", "--", "true"], 2, "--magic"),
    ],
)
def test_wrong_use_is_one_line(arguments, code, says):
    done = dpwatch("run", *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def refused(private_runtime, tmp_path, how):
    """A runtime directory that can't be used."""
    if how == "open":
        private_runtime.chmod(0o777)
        return private_runtime
    if how == "link":
        (tmp_path / "link").symlink_to(private_runtime)
        return tmp_path / "link"
    if how == "long":
        return tmp_path / ("x" * 100)
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "rt"


@pytest.mark.parametrize("how", ["open", "link", "long", "in the way"])
def test_a_runtime_directory_that_cannot_be_used_keeps_no_command_from_running(
    private_runtime, tmp_path, how
):
    place = str(refused(private_runtime, tmp_path, how))
    (tmp_path / "tmp").mkdir()
    more = {"DPWATCH_RUNTIME_DIR": place, "TMPDIR": str(tmp_path / "tmp")}
    told = tmp_path / "told.json"
    command = ["sh", "-c", "echo started; exit 5"]
    done = dpwatch("run", "--quiet", "--json", str(told), "--", *command, **more)
    assert (done.returncode, done.stdout) == (5, "started\n")
    assert len(done.stderr.splitlines()) == 1
    assert "`DPWATCH_RUNTIME_DIR=" in done.stderr  # where this one's runs are shown
    assert json.loads(told.read_text())["runs"] == []
    assert list((tmp_path / "tmp").iterdir()) == []  # the place it had instead is gone


def test_where_there_is_no_place_at_all_the_command_runs_unwatched(monkeypatch, capfd):
    def full(**more):
        raise OSError("no space left")

    def taken(**more):
        raise RuntimeDirError("somebody else has it; set DPWATCH_RUNTIME_DIR to another")

    monkeypatch.setattr(paths, "private_dir", full)
    monkeypatch.setattr(paths, "runtime_dir", taken)
    watching = run.Watching.prepared()
    assert (
        "PYTHONPATH"
        not in watching.environment(output=True, memory=None).keys() - os.environ.keys()
    )
    with Command(["sh", "-c", "exit 5"], watching.environment(output=True, memory=None)) as command:
        assert watching.follow(command, None) == []
    assert command.code == 5
    said = capfd.readouterr().err
    assert said == (
        "dpwatch: somebody else has it: the command runs unwatched; "
        "set DPWATCH_RUNTIME_DIR to a directory you own\n"
    )


def test_trouble_with_watching_leaves_the_command_alone(monkeypatch, capfd):
    def broken(*_, **__):
        raise OSError("too many open files")

    monkeypatch.setattr("dpwatch.viewer.watcher.Watcher", broken)
    watching = run.Watching.prepared()
    with Command(
        ["sh", "-c", "sleep 0.2; exit 5"], watching.environment(output=True, memory=None)
    ) as command:
        assert watching.follow(command, None) == []
    assert command.code == 5
    assert "no longer watching: too many open files" in capfd.readouterr().err


TRAPS = """
import signal, sys
def told(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(3)
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(each, told)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_pass_through(name):
    process = started(PYTHON, "-c", TRAPS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == f"{name}\n"
    process.communicate(timeout=60)
    assert process.returncode == 3
