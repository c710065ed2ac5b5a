"""The script for other hosts, run by this host's shells, and the parser of its output."""

import json
import os
import select
import shutil
import subprocess
import time

import pytest

from dpwatch.run.model.snapshot import GpuProcess, HostGpu
from dpwatch.runtime import paths
from dpwatch.viewer.remote import agent_script as far_side
from dpwatch.viewer.remote.agent_script import CYCLE_END, GPUS_EVERY_S, Listing, script
from tests.nvidia_smi import A100, A100_USERS, NO_DRIVER, NvidiaSmi

DEADLINE_S = 60
SHELLS = [each for each in ("dash", "bash", "busybox") if shutil.which(each)]


class Session:
    """The script in a shell of this host, and its output so far."""

    def __init__(self, places, shell, tools, dpwatch="dpwatch"):
        words = [shell, *(["sh"] if shell == "busybox" else []), "-c", script(places, dpwatch)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tools.parent)},
        )  # fmt: skip
        self.listing = Listing("node1")
        self.cycles = 0

    def until(self, condition):
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.process.stdout], [], [], 1.0)
            if ready:
                line = self.process.stdout.readline()
                self.cycles += line.strip() == CYCLE_END
                self.listing.feed(line)
            if condition(self.listing):
                return self.listing
        raise AssertionError(f"never came: {vars(self.listing)}")

    def close(self):
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        self.process.stdout.close()


@pytest.fixture
def session(private_runtime, tmp_path):
    opened = []
    (tmp_path / "bin").mkdir(exist_ok=True)

    def open_one(shell=SHELLS[0], **options):
        opened.append(Session(str(private_runtime), shell, tmp_path / "bin", **options))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def smi(tmp_path):
    return NvidiaSmi(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_lists_runs_and_gpus(session, smi, shell):
    """GPUs are queried repeatedly while there is no run, and not while there is one."""
    smi.says(A100, A100_USERS)
    there = session(shell)
    seen = there.until(lambda listing: listing.gpus)
    assert [(gpu.index, gpu.util, gpu.host) for gpu in seen.gpus] == [
        (0, 0.93, "node1"), (1, 0.0, "node1")
    ]  # fmt: skip
    assert seen.gpus[0].processes[0].pid == 41873
    assert seen.dpwatch == ""
    smi.says(A100.replace(" 93,", " 12,"))
    there.until(lambda listing: listing.gpus[0].util == 0.12 and not listing.gpus[0].processes)
    assert all(line.startswith("C --query-") for line in smi.asked)
    place = paths.run_dir("run")
    lock = place.try_lock()
    place.write_info(paths.RunInfo("run", "here", os.getpid(), 2.0))
    there.until(lambda listing: list(listing.runs) == [str(place.info_file)])
    asked, last = len(smi.asked), there.cycles + GPUS_EVERY_S + 2
    there.until(lambda listing: there.cycles == last)
    # One query may have been in progress when the run appeared; none has started since.
    assert len(smi.asked) <= asked + 1
    os.close(lock)  # the hub is dead, and its run.json left over
    there.until(lambda listing: not listing.runs)
    assert place.info_file.exists()


def test_nvidia_smi_without_a_driver_is_reported(session, smi):
    smi.says(NO_DRIVER, NO_DRIVER, code=9)
    seen = session().until(lambda listing: listing.dpwatch is not None)
    assert seen.gpus == ()
    assert seen.trouble.startswith("NVIDIA-SMI has failed because it couldn't communicate")


def test_a_remote_dpwatch_reports_gpus_without_nvidia_smi(session, tmp_path):
    """Its path may start with a tilde, and it may be an older version without GPUs."""
    gpu = {"index": 0, "name": "N" * 999, "util": 0.5, "used_bytes": None, "later": 1,
           "processes": [{"pid": 5, "name": "python", "used_bytes": 7}]}  # fmt: skip
    for name, told in (("new one", {"gpus": [gpu]}), ("old", {"schema": "x", "runs": []})):
        program = tmp_path / name
        text = json.dumps(told, indent=2)
        program.write_text(f"#!/bin/sh\n[ \"$*\" = '--once --json' ] && echo '{text}'; exit 3\n")
        program.chmod(0o755)
    seen = session(dpwatch="~/new one").until(lambda listing: listing.gpus)
    assert seen.gpus == (
        HostGpu(0, "N" * 256, 0.5, processes=(GpuProcess(5, "python", 7),), host="node1"),
    )
    assert seen.dpwatch == str(tmp_path / "new one")
    old = session(dpwatch="~/old").until(lambda listing: listing.dpwatch is not None)
    assert (old.gpus, old.dpwatch) == ((), str(tmp_path / "old"))


def test_the_script_ends_with_its_standard_input(session):
    there = session()
    there.until(lambda listing: listing.dpwatch is not None)
    there.process.stdin.close()
    there.process.wait(DEADLINE_S)


def test_old_gpu_figures_are_not_shown():
    """nvidia-smi hangs if the driver does, and GPUs are not queried while there is a run."""
    now = [100.0]
    listing = Listing("node1", clock=lambda: now[0])

    def seen(*lines):
        for line in lines:
            listing.feed(f"{line}\n")
        return len(listing.gpus), listing.trouble

    gpu = "gpu 0, GPU-a, 1, 2, 3, 4, 5, T4"
    assert seen(".", gpu) == (0, "")
    assert seen("end ") == (1, "")
    now[0] += far_side.OLD_S
    assert seen(".") == (1, "")
    now[0] += 1
    assert seen(".") == (0, "no answer")
    assert seen(gpu, "end ") == (1, "")
    run = 'run /d/a/run.json\t{"run_id":"a","host":"h","hub_pid":1,"started_wall_s":1.0}'
    assert seen(run, ".") == (0, "")
    now[0] += 99
    assert seen(run, ".") == (0, "")
    assert seen(".") == (0, "")


def test_output_of_the_script_is_bounded():
    listing = Listing("node1")
    for i in range(2 * far_side.MOST_LINES):
        assert not listing.feed(f"gpu {i}, GPU-{i}, 1, 2, 3, 4, 5, x\n")
        assert not listing.feed("run /d/r/run.json\t{}\n")
        assert not listing.feed("what is this\n")
    listing.feed("end /bin/dpwatch\n")
    assert len(listing.gpus) == 64
    assert listing.dpwatch == "/bin/dpwatch"
    listing.feed("json {not json\n")
    listing.feed("end \n")
    assert (listing.gpus, listing.dpwatch) == ((), "")
    listing.feed(f"bad {'x' * 9999}\n")
    listing.feed("end \n")
    assert len(listing.trouble) == 200
