"""`dpwatch doctor`: what it finds, what it says of what is wrong, and that it leaves no trace."""

import argparse
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from importlib.util import find_spec

import pytest

from dpwatch.cli import doctor
from dpwatch.cli.checks import child, host, installed, runs, terminal, training
from dpwatch.cli.checks.check import NOTE, OK, TROUBLE, Check
from dpwatch.runtime.paths import RUN_ID_CHARS
from dpwatch.tui.views import waiting_and_help as guidance
from tests.processes import dpwatch, environment, processes_with, start

TORCH = find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="asks torch itself")

NAMES = ["dpwatch", "packages", "python", "NVML", "torch", "collectives", "start-up hook",
         "runtime dir", "hub", "keys", "cores", "memory", "schedstat", "pidfd_open", "ssh",
         "terminal", "locale"]  # fmt: skip

UTF8 = {"LC_ALL": "C.UTF-8"}
TOLD = {"torch": "2.13.0+cpu", "cuda": None, "hip": None, "gpus": 0, "gloo": True,
        "capture": "observer", "python": True, "native": True}  # fmt: skip


# -- the command ----------------------------------------------------------------------------------


def test_a_line_a_check_and_nothing_left_behind(private_runtime):
    done = dpwatch("doctor", **UTF8)
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert [line[9:24].strip() for line in lines[:-2]] == NAMES
    assert {line.split()[0] for line in lines[:-2]} <= {OK, NOTE}
    assert lines[-1].endswith("0 in trouble")
    assert "\x1b" not in done.stdout
    assert list(private_runtime.iterdir()) == []
    assert processes_with(str(private_runtime)) == []


@needs_torch
def test_what_it_says_as_json_without_importing_torch_itself():
    code = (
        "import sys; from dpwatch.cli import main; main(['doctor', '--json']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(**UTF8), timeout=90
    )
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["schema"] == doctor.SCHEMA
    assert told["ok"] is True
    found = {each["name"]: each for each in told["checks"]}
    assert list(found) == NAMES
    assert found["collectives"]["value"] == "observer"
    assert found["start-up hook"]["value"] is True
    assert found["hub"]["value"] is True


def test_a_directory_that_was_not_there_is_gone_again(private_runtime):
    place = private_runtime / "n" / "rt"
    done = dpwatch("doctor", DPWATCH_RUNTIME_DIR=str(place), **UTF8)
    assert done.returncode == 0, done.stdout
    assert "created when needed" in done.stdout
    assert not place.parent.exists()


def test_ended_in_the_midst_it_leaves_nothing_either(private_runtime):
    process = start("dpwatch", "doctor")
    while not process.stdout.readline().startswith("ok       runtime dir"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # the hub is being started
    process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(private_runtime.iterdir()) == []
    assert processes_with(str(private_runtime)) == []


def test_trouble_is_exit_code_1_and_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    done = dpwatch("doctor", DPWATCH_RUNTIME_DIR=str(tmp_path / "file" / "rt"), **UTF8)
    (told,) = [line for line in done.stdout.splitlines() if line.startswith(TROUBLE)]
    assert done.returncode == 1
    assert "set DPWATCH_RUNTIME_DIR to a directory you can write" in told
    assert "hub            not tried" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 in trouble")
    assert done.stderr == ""


def test_help_has_an_example():
    assert "examples:" in dpwatch("doctor", "--help").stdout
    assert "doctor" in dpwatch("--help").stdout


def in_a_terminal(columns, lines, **more):
    """`dpwatch doctor` without its slow checks, in a terminal of that size: code and output."""
    code = (
        "import sys; from dpwatch.cli import doctor, main;"
        "from dpwatch.cli.checks import terminal;"
        "doctor.all_checks = terminal.checks; sys.exit(main(['doctor']))"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = environment(TERM="xterm-256color", COLORTERM="truecolor", **UTF8) | more
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    return process.wait(90), output.decode()


def test_a_small_terminal_is_trouble():
    code, output = in_a_terminal(70, 20)
    assert code == 1
    assert "70x20" in output
    assert "\x1b[1;31mtrouble" in output
    assert "the dashboard needs 80x24" in output


def test_colour_is_left_out_when_asked():
    code, output = in_a_terminal(100, 30)
    assert code == 0
    assert "\x1b[32mok" in output
    code, output = in_a_terminal(100, 30, NO_COLOR="1")
    assert code == 0
    assert "\x1b" not in output
    assert "NO_COLOR is set" in output


def test_a_locale_without_blocks_is_trouble_and_can_be_printed():
    code, output = in_a_terminal(100, 30, LC_ALL="POSIX", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert code == 1
    assert "blocks and lines cannot be drawn" in output


def test_signs_of_other_programs_do_not_reach_the_terminal():
    shown = doctor.line(Check("NVML", NOTE, "evil \x1b[2J", "do"), coloured=False)
    assert shown == "note     NVML           evil \N{REPLACEMENT CHARACTER}[2J; do"


def test_any_trouble_decides_the_exit_code(monkeypatch, capsys):
    for mark, code in ((OK, 0), (NOTE, 0), (TROUBLE, 1)):
        monkeypatch.setattr(
            doctor, "all_checks", lambda mark=mark: (Check("x", m, "y") for m in [mark])
        )
        assert doctor.run(argparse.Namespace(json=True)) == code
        assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


# -- what is installed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "limits", "fits"),
    [
        ("2.6.0+cu124", ">=2.6", True),
        ("2.6", ">=2.6.0", True),
        ("2.10", ">=2.6", True),
        ("2.5.1", ">=2.6", False),
        ("9.0", "<9,>=8.0", False),
        ("8.2.8", "<9,>=8.0", True),
        ("1.0", "", True),
    ],
)
def test_versions(version, limits, fits):
    assert installed.within(version, limits) is fits


def test_requirements_are_those_of_the_project():
    assert "textual" in installed.requirements()
    assert "torch" not in installed.requirements()
    assert installed.requirements("train")["torch"].startswith(">=2.")


def test_another_dpwatch_than_hubs_and_ranks_import(monkeypatch):
    assert installed.itself().mark == OK
    monkeypatch.setattr(
        installed, "ask", lambda *_, **__: ({"file": "/other/dpwatch/__init__.py"}, "")
    )
    assert installed.itself().mark == NOTE
    monkeypatch.setattr(installed, "ask", lambda *_, **__: ({}, "No module named dpwatch"))
    assert installed.itself().mark == TROUBLE


def test_packages_that_are_missing_or_old(monkeypatch):
    versions = {"msgspec": "0.1", "pyzmq": None}
    monkeypatch.setattr(installed, "version_of", lambda name: versions.get(name, "99"))
    monkeypatch.setattr(
        installed, "requirements", lambda: {"msgspec": ">=0.19", "pyzmq": ">=26", "other": ""}
    )
    found = installed.packages()
    assert found.mark == TROUBLE
    assert found.text == "msgspec 0.1 is not >=0.19, pyzmq is missing"


def test_a_python_that_has_torch_and_no_dpwatch(monkeypatch):
    monkeypatch.setattr(installed, "others", lambda: ["/other/python"])
    monkeypatch.setattr(installed, "ask", lambda *_, **__: ({"torch": True, "dpwatch": False}, ""))
    found = installed.python()
    assert found.mark == NOTE
    assert found.advice.endswith(f"/other/python -m pip install {installed.source()}")
    monkeypatch.setattr(installed, "OLDEST_PYTHON", (9, 0))
    assert installed.python().mark == TROUBLE


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ('{"dir_info": {"editable": true}, "url": "file:///a%20b/dpwatch"}', "/a b/dpwatch"),
        ('{"archive_info": {}, "url": "file:///w/dpwatch-0.1.0-py3-none-any.whl"}',
         "/w/dpwatch-0.1.0-py3-none-any.whl"),
        ('{"url": "https://host/dpwatch", "vcs_info": {"vcs": "git", "commit_id": "1"}}',
         "git+https://host/dpwatch"),
        (None, "dpwatch==1.2"),  # from an index
    ],
)  # fmt: skip
def test_pip_is_told_where_this_dpwatch_came_from(url, source, monkeypatch):
    class Installed:
        version = "1.2"

        def read_text(self, name):
            return url if name == "direct_url.json" else None

    monkeypatch.setattr(installed.metadata, "distribution", lambda name: Installed())
    assert installed.source() == source


# -- torch ----------------------------------------------------------------------------------------


def test_without_torch_watching_works(monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    torch, collectives, hook = training.checks(None)
    assert (torch.mark, collectives.mark, hook.mark) == (NOTE, NOTE, OK)
    assert torch.advice == "pip install torch numpy"


@pytest.mark.parametrize(
    ("told", "gpus", "mark", "says"),
    [
        ({}, None, OK, "CPU build"),
        ({"torch": "2.5.1"}, None, TROUBLE, "needs torch>="),
        ({"cuda": "12.6", "gpus": 2}, 2, OK, "CUDA 12.6, 2 GPUs usable"),
        ({"hip": "6.2", "gpus": 1}, None, OK, "ROCm 6.2, 1 GPUs usable"),
        ({}, 2, NOTE, "this host has 2 GPUs"),
        ({"cuda": "12.6"}, 2, NOTE, "cannot use any of this host's 2 GPUs"),
    ],
)
def test_torch_and_its_gpus(told, gpus, mark, says):
    found = training.torch(TOLD | told, "", gpus)
    assert found.mark == mark
    assert says in found.text


@pytest.mark.parametrize(
    ("told", "mark", "says"),
    [
        ({}, OK, "from Python and from C++"),
        ({"capture": "patch", "native": False}, NOTE, "C++ callers such as DDP"),
        ({"capture": "none", "python": False, "native": False}, TROUBLE, "not seen"),
        ({"gloo": False}, NOTE, "no gloo"),
        ({"capture": None}, TROUBLE, "no answer within"),
    ],
)
def test_how_collectives_are_seen(told, mark, says):
    found = training.collectives(TOLD | told, "no answer within 90 s")
    assert found.mark == mark
    assert says in found.text


def test_whether_nccl_is_timed(monkeypatch):
    found = training.durations({"durations": ["it is not set", "set it"]})
    assert (found.mark, found.advice, found.value) == (NOTE, "set it", False)
    assert "it is not set" in found.text
    found = training.durations({"durations": ["", ""]})
    assert (found.mark, found.advice, found.value) == (OK, "", True)
    monkeypatch.setattr(training, "find_spec", lambda name: object())
    monkeypatch.setattr(training, "ask", lambda *_, **__: (TOLD | {"durations": ["", ""]}, ""))
    monkeypatch.setattr(training, "hook", lambda: Check("start-up hook", OK, ""))
    names = [each.name for each in training.checks(None)]
    assert names == ["torch", "collectives", "NCCL times", "start-up hook"]


def test_a_torch_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12')")
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(tmp_path), *([before] if before else [])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(training, "find_spec", lambda name: object())
    torch, collectives, _ = training.checks(None)
    assert torch.mark == TROUBLE
    assert "libcudart.so.12" in torch.text
    assert collectives.mark == NOTE


def test_the_hook_and_the_users_own(monkeypatch, tmp_path):
    assert training.hook().mark == OK
    (tmp_path / "sitecustomize.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = training.hook()
    assert found.mark == OK
    assert f"your own {tmp_path / 'sitecustomize.py'}" in found.text
    monkeypatch.setenv("DPWATCH", "0")
    assert training.hook().mark == NOTE


def test_a_python_that_the_hook_does_not_get_into(monkeypatch, tmp_path):
    isolated = tmp_path / "python"
    isolated.write_text(f'#!/bin/sh\nexec {sys.executable} -I "$@"\n')
    isolated.chmod(0o755)
    monkeypatch.setattr(training.sys, "executable", str(isolated))
    found = training.hook()
    assert found.mark == TROUBLE
    assert "dpwatch.watch()" in found.advice


# -- asking another process -----------------------------------------------------------------------


def test_what_was_said_before_a_crash_counts():
    code = "import os; print('noise'); print('{\"a\": 1}', flush=True); os.abort()"
    told, why = child.ask([sys.executable, "-c", code], timeout_s=60)
    assert told == {"a": 1}
    assert why == "ended by signal 6"


def test_an_answer_that_does_not_come():
    told, why = child.ask(["sh", "-c", "echo '{\"a\": 1}'; exec tail -f /dev/null"], timeout_s=1)
    assert told == {"a": 1}
    assert why == "no answer within 1 s"


def test_a_command_that_is_not_there():
    assert child.ask(["/no/such"], timeout_s=1) == (
        {},
        "cannot run /no/such: No such file or directory",
    )


# -- runs -----------------------------------------------------------------------------------------


def test_a_directory_open_to_others(private_runtime):
    private_runtime.chmod(0o755)
    assert runs.directory(private_runtime).mark == NOTE
    private_runtime.chmod(0o777)
    assert runs.directory(private_runtime).mark == TROUBLE


@pytest.mark.parametrize(("chars", "mark"), [(RUN_ID_CHARS, OK), (30, NOTE), (5, TROUBLE)])
def test_a_path_too_long_for_sockets(monkeypatch, private_runtime, chars, mark):
    taken = len(str(private_runtime)) + len("/") + len("//ask") + chars
    place = private_runtime / ("x" * (107 - taken))
    place.mkdir(mode=0o700)
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(place))
    assert runs.directory(place).mark == mark


def test_a_hub_that_cannot_be_started(monkeypatch, private_runtime, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named zmq' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(broken))
    found = runs.hub(private_runtime)
    assert found.mark == TROUBLE
    assert "No module named zmq" in found.text
    assert list(private_runtime.iterdir()) == []


def test_a_hub_that_does_not_get_ready_is_ended(monkeypatch, private_runtime, tmp_path):
    deaf = tmp_path / "python"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\nexec tail -f /dev/null\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(deaf))
    monkeypatch.setattr(runs, "HUB_S", 0.0)
    monkeypatch.setattr(child, "END_S", 0.1)
    found = runs.hub(private_runtime)
    assert found.mark == TROUBLE
    assert "not ready" in found.text
    assert list(private_runtime.iterdir()) == []
    assert processes_with(str(private_runtime)) == []


# -- host and terminal ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "driver", "mark", "says"),
    [
        ({"gpus": 2, "driver": "570.1"}, True, OK, "driver 570.1, 2 GPUs"),
        ({}, False, NOTE, "no NVIDIA driver"),
        ({}, True, TROUBLE, "does not answer"),
    ],
)
def test_gpus(monkeypatch, tmp_path, told, driver, mark, says):
    place = tmp_path / "version"
    if driver:
        place.write_text("")
    monkeypatch.setattr(host, "DRIVER", place)
    monkeypatch.setattr(host, "ask", lambda *_, **__: (told, "" if told else "no answer"))
    found = host.nvml()
    assert found.mark == mark
    assert says in found.text
    assert found.value == told.get("gpus")


def test_scheduler_statistics(tmp_path):
    place = tmp_path / "schedstat"
    assert host.schedstat(place).mark == NOTE
    for text, mark in (("0 0 0\n", NOTE), ("12 3 4\n", OK), ("", NOTE)):
        place.write_text(text)
        assert host.schedstat(place).mark == mark


def test_what_a_control_group_leaves(monkeypatch):
    from dpwatch.runtime import cgroup_limits

    monkeypatch.setattr(cgroup_limits, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(cgroup_limits, "memory_limit", lambda: 1 << 30)
    assert host.cores().mark == NOTE
    assert "the control group allows 1.5" in host.cores().text
    assert host.memory().text.startswith("1.00 GiB by the control group")


def test_no_ssh_and_no_pidfd_are_notes(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    assert host.ssh().mark == NOTE

    def refused(pid):
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "pidfd_open", refused, raising=False)
    assert host.pidfd().mark == NOTE


COLOURFUL = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


@pytest.mark.parametrize(
    ("size", "environ", "mark", "says"),
    [
        (None, COLOURFUL, NOTE, "none: the dashboard needs one"),
        ((80, 24), COLOURFUL, OK, "80x24"),
        ((79, 24), COLOURFUL, TROUBLE, "80x24"),
        ((80, 23), COLOURFUL, TROUBLE, "80x24"),
        ((80, 24), {"TERM": "dumb"}, NOTE, "dumb"),
        ((80, 24), {}, NOTE, "TERM is not set"),
        ((80, 24), COLOURFUL | {"NO_COLOR": "1"}, OK, "NO_COLOR"),
    ],
)
def test_terminals(size, environ, mark, says):
    found = terminal.terminal(size, environ)
    assert found.mark == mark
    assert says in found.text


@pytest.mark.parametrize(("colours", "mark"), [(None, OK), (8, NOTE), (256, OK)])
def test_colours(monkeypatch, colours, mark):
    monkeypatch.setattr(terminal, "colours_of", lambda environ: colours)
    assert terminal.terminal((80, 24), COLOURFUL).mark == mark


def test_the_size_is_the_dashboards_own():
    assert (terminal.WIDTH, terminal.HEIGHT) == (guidance.MIN_WIDTH, guidance.MIN_HEIGHT)


def test_locales():
    assert terminal.encoding("UTF8").mark == OK
    assert terminal.encoding("ANSI_X3.4-1968").mark == TROUBLE
    assert terminal.encoding("nonsense").mark == TROUBLE
