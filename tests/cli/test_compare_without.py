"""`dpwatch run --compare-without`: three runs of a command, and what is said of them."""

import os
import signal
import subprocess
import sys

import pytest

from tests.processes import dpwatch, environment, eventually, processes_with

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def _own_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def compare(*command, **more):
    return subprocess.run(
        [PYTHON, "-m", "dpwatch", "run", "--compare-without", "--", *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=280,
        env=environment(**more),
        check=False,
    )


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return [PYTHON, str(path)]


def test_a_command_that_does_the_same():
    done = compare("sh", "-c", "echo loss 0.5; echo slow >&2; exit 3")
    assert done.returncode == 0
    assert "exit code  3, the same" in done.stdout
    assert "stdout     1 lines, the same" in done.stdout
    assert "The command behaves the same with dpwatch and without." in done.stdout
    assert "three times" in done.stderr
    assert "loss 0.5" not in done.stdout


NOTICES = """
import os
watched = "DPWATCH_SESSION" in os.environ
print("loss", 0.25 if watched else 0.5)
"""


def test_a_command_that_notices(tmp_path):
    done = compare(*script(tmp_path, NOTICES))
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout
    assert "without  loss 0.5\n  with     loss 0.25\n" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("All output: ")]
    folder = line.removeprefix("All output: ").partition("/{")[0]
    with open(os.path.join(folder, "with.out")) as file:
        assert file.read() == "loss 0.25\n"


def test_another_exit_code():
    done = compare("sh", "-c", 'test -z "$DPWATCH_SESSION" || exit 9')
    assert done.returncode == 1
    assert "exit code  DIFFERS: 0 without dpwatch, 9 with it" in done.stdout


def test_what_differs_anyway_is_not_judged(tmp_path):
    text = "import os, time; print(time.time_ns(), os.getpid(), 'loss 0.5')"
    done = compare(*script(tmp_path, text))
    assert done.returncode == 0
    assert "1 have numbers that differ without dpwatch too" in done.stdout
    assert "1 numbers on lines with a loss agree" in done.stdout


TRAINS = """
import torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(3):
    loss = weight.square().sum()
    loss.backward()
    optimizer.step()
    print("loss", float(loss.detach()).hex())
"""


@pytest.mark.scripts
def test_what_dpwatch_saw_of_a_training(tmp_path):
    done = compare(*script(tmp_path, TRAINS))
    assert done.returncode == 0, done.stdout
    assert "dpwatch    saw 3 steps of 1 ranks, loss 2 → " in done.stdout


def test_a_script_that_watches_itself_is_run_without(tmp_path):
    text = "import os; print(os.environ.get('DPWATCH'))"
    done = compare(*script(tmp_path, text), DPWATCH="0")
    assert done.returncode == 1
    assert "without  0\n  with     None\n" in done.stdout


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_each_run_reads_the_same_standard_input(kind, tmp_path):
    text = tmp_path / "text"
    text.write_text("skipped\n" + "word\n" * 30_000)
    command = [PYTHON, "-m", "dpwatch", "run", "--compare-without", "--", "sh", "-c", "wc -l"]
    with text.open() as file:
        assert file.buffer.raw.read(8) == b"skipped\n"
        given = {"stdin": file} if kind == "file" else {"input": text.read_text()[8:]}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), check=False, **given
        )
    assert done.returncode == 0, done.stdout
    assert "stdout     1 lines, the same" in done.stdout


def test_a_standard_input_that_stays_open_and_silent():
    command = [PYTHON, "-m", "dpwatch", "run", "--compare-without", "--", "sh", "-c", "read line"]
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as late, os.fdopen(reader) as given:
        process = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(),
        )  # fmt: skip
        assert "three times" in process.stderr.readline()
        late.write(b"a line\n")
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "exit code  0, the same" in out


WAITS = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
{ignore}
open({ready!r}, "w").close()
signal.pause()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stubborn", [False, True])
def test_interrupted_nothing_is_left(how, stubborn, tmp_path):
    ready = tmp_path / "ready"
    ignore = "for n in (2, 15): signal.signal(n, signal.SIG_IGN)" if stubborn else ""
    command = script(tmp_path, WAITS.format(ready=str(ready), ignore=ignore))
    process = subprocess.Popen(
        [PYTHON, "-m", "dpwatch", "run", "--compare-without", "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(HARMLESS_MARK=str(tmp_path)),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    eventually(ready.exists, "the command runs")
    os.killpg(process.pid, how)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else 128 + how)
    assert out == ""
    eventually(lambda: not processes_with(str(tmp_path)), "every process gone")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--"], "no command given"),
        (["--", "/no/such/command"], "No such file"),
        (["--json", "x.json", "--", "true"], "--json"),
        (["--fail-on", "critical", "--", "true"], "--fail-on"),
    ],
)
def test_wrong_use(arguments, says):
    done = dpwatch("run", "--compare-without", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr.splitlines()[-1]
