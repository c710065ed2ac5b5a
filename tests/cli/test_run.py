"""`dpwatch run` as a wrapper: what passes through it, what is said, and the start-up hook."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dpwatch as dpwatch_package
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
        ([], 2, "say what to run"),
        (["--"], 2, "say what to run"),
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


def test_without_a_runtime_directory_nothing_is_started(tmp_path):
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "rt")
    done = dpwatch("run", "--", "echo", "started", DPWATCH_RUNTIME_DIR=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert "DPWATCH_RUNTIME_DIR" in done.stderr


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


SPEAKS = """
import sys, json
print(json.dumps([sys.path, hasattr(sys, "users_own"),
                  [m for m in sys.modules if m.startswith(("dpwatch", "zmq", "torch"))]]))
"""


def speaks(*, hooked, **more):
    command = [PYTHON, "-c", SPEAKS]
    if hooked:
        done = dpwatch("run", "--quiet", "--", *command, **more)
    else:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(**more), check=True
        )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_hook_leaves_other_python_as_it_was(tmp_path):
    assert speaks(hooked=True) == speaks(hooked=False)
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys\nsys.users_own = True\n")
    ours = speaks(hooked=True, PYTHONPATH=str(own))
    assert ours == speaks(hooked=False, PYTHONPATH=str(own))
    assert ours[1]


def test_a_broken_sitecustomize_of_the_users_is_told_by_python_itself(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("1/0\n")
    done = dpwatch("run", "--quiet", "--", PYTHON, "-c", "print(1)", PYTHONPATH=str(tmp_path))
    assert done.stdout == "1\n"
    assert "Error in sitecustomize" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_python_without_dpwatch_says_so_and_goes_on(tmp_path):
    """The hook's module alone, in front of modules that look like torch's."""
    package = tmp_path / "torch" / "optim"
    package.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "optimizer.py").write_text(
        "class Optimizer:\n    def __init__(self, x): self.x = x\n"
    )
    script = "from torch.optim.optimizer import Optimizer as O; print(O(1).x, O(x=2).x)"
    place = Path(dpwatch_package.__file__).parent / "hook"
    done = subprocess.run(
        [PYTHON, "-s", "-c", "import sys; sys.modules['dpwatch'] = None\n" + script],
        capture_output=True,
        text=True,
        check=True,
        env=environment(PYTHONPATH=f"{place}:{tmp_path}", DPWATCH_SESSION="abc"),
    )
    assert done.stdout == "1 2\n"
    assert len(done.stderr.splitlines()) == 1
    assert "dpwatch must be installed beside torch" in done.stderr
