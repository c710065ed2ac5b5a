"""The probe, its hub and its viewers change nothing in the training, to the last bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpwatch.runtime.listing import list_runs
from tests.hubs import has, until, watching
from tests.processes import DEADLINE_S, environment, eventually, processes_with, start

pytestmark = [pytest.mark.dist, pytest.mark.scripts]
SCRIPT = Path(__file__).with_name("every_loss.py")
STEPS = 40


def training(strategy, steps, store, **more):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), strategy, str(steps), str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(DPWATCH_HUB_LINGER_S="1", **more),
    )


def losses(process):
    """Every line that the ranks wrote, in an order that does not depend on who wrote first."""
    out, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    lines = out.splitlines()
    return sorted(lines, key=lambda line: line.split()[0])


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    place = tmp_path_factory.mktemp("without")
    return {s: losses(training(s, STEPS, place / s, DPWATCH="0")) for s in ("single", "dp", "ddp")}


@pytest.mark.parametrize("strategy", ["single", "dp", "ddp"])
def test_losses_with_the_probe_are_bit_identical(strategy, without, tmp_path):
    ranks = 2 if strategy == "ddp" else 1
    assert len(without[strategy]) == ranks * (STEPS + 1)
    process = training(strategy, STEPS, tmp_path / "store", DPWATCH_RUN_ID="run")
    with watching() as watcher:
        seen = until(watcher, has("run", state="finished", steps=STEPS)).runs[0]
    assert losses(process) == without[strategy]
    # What was told of the loss is the script's own, step by step (of short steps not each is).
    curve = seen.history.loss
    assert curve.steps[0] == 0
    assert len(curve.steps) >= STEPS // 10
    for step, value in zip(curve.steps, curve.values, strict=True):
        assert value == pytest.approx(_mean_of(without[strategy], step), rel=1e-6)
    assert (seen.run.loss.first, seen.run.loss.last) == (curve.values[0], curve.values[-1])
    assert all(rank.memory.peak_bytes for rank in seen.run.ranks)


def _mean_of(lines, step):
    """Mean over the ranks of a step's loss, from what the script itself wrote."""
    ranks = sorted({line.split()[0] for line in lines})
    own = [[line.split()[1] for line in lines if line.split()[0] == rank] for rank in ranks]
    values = [float.fromhex(each[step]) for each in own]
    return sum(values) / len(values)


VIEWER = """
from dpwatch.viewer.watcher import Watcher
watcher, told = Watcher(), False
while True:
    seen = watcher.next(1)
    if not told and seen and seen.runs and seen.runs[0].run.steps:
        told = True
        print("sees it", flush=True)
"""
LONGER = 1000


def test_viewers_and_hub_may_stop_and_die_in_mid_stream(tmp_path):
    """Two viewers follow; one is stopped, one killed, then the hub: the losses stay the same."""
    expected = losses(training("ddp", LONGER, tmp_path / "off", DPWATCH="0"))
    follow = [sys.executable, "-c", VIEWER]
    viewers = [subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        process = training("ddp", LONGER, tmp_path / "on", DPWATCH_RUN_ID="run")
        for viewer in viewers:
            assert viewer.stdout.readline() == "sees it\n"
        viewers[0].send_signal(signal.SIGSTOP)
        viewers[1].kill()
        os.kill(list_runs()[0].read_info().hub_pid, signal.SIGKILL)
        assert process.poll() is None, "it should still train"
        assert losses(process) == expected
    finally:
        for viewer in viewers:
            viewer.kill()
            viewer.communicate()


def test_no_hub_can_be_had(without, tmp_path):
    """The runtime directory can't be used: one line says so, and the training goes on."""
    (tmp_path / "file").write_text("")
    process = training(
        "dp", STEPS, tmp_path / "store", DPWATCH_RUNTIME_DIR=str(tmp_path / "file" / "x")
    )
    out, errors = process.communicate(timeout=DEADLINE_S)
    assert sorted(out.splitlines()) == sorted(without["dp"])
    lines = [line for line in errors.splitlines() if "dpwatch" in line]
    assert len(lines) == 1
    assert "DPWATCH_RUNTIME_DIR" in lines[0]
    assert "Traceback" not in errors


def test_torchrun_with_the_probe(private_runtime):
    run = start(
        *("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "dpwatch.trainer", "--strategy", "ddp", "--steps", "12"),
        *("--d-model", "32", "--heads", "2"),
        DPWATCH_HUB_LINGER_S="1",
    )
    with watching() as watcher:
        snapshot = until(watcher, lambda s: bool(s.runs) and s.runs[0].run.state == "finished")
    out, errors = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 0, errors
    seen = snapshot.runs[0].run
    assert (seen.strategy, seen.backend, seen.world_size, seen.steps) == ("ddp", "gloo", 2, 12)
    assert "step 12/12" in out
    eventually(lambda: not processes_with(str(private_runtime)), "every process gone")


def test_one_line_in_a_script_of_ones_own(private_runtime):
    """Two ranks under torchrun, two backwards a step: bytes, steps and samples by hand."""
    run = start(
        *("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        str(SCRIPT.with_name("own_script.py")),
        DPWATCH_HUB_LINGER_S="1",
    )
    with watching() as watcher:
        snapshot = until(watcher, lambda s: bool(s.runs) and s.runs[0].run.state == "finished")
    _, errors = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 0, errors
    seen = snapshot.runs[0].run
    parameters = (32 * 64 + 64) + (64 + 1)
    assert (seen.title, seen.strategy, seen.backend) == ("own_script", "ddp", "gloo")
    assert (seen.steps, seen.world_size, len(seen.ranks)) == (12, 2, 2)
    assert (seen.model.params, seen.model.param_bytes) == (parameters, 4 * parameters)
    (reduce,) = [c for c in seen.collectives if c.op == "all_reduce"]
    assert reduce.bytes_per_step == 2 * 4 * parameters  # one all-reduce of all gradients a backward
    for rank in seen.ranks:
        assert rank.sent_bytes_per_step == 2 * 4 * parameters  # ring: 2(N−1)/N = 1 at two ranks
        assert rank.phases_ms.data is not None
        assert rank.phases_ms.h2d is None
        held = rank.memory.at_step_end
        assert (held.params, held.grads, held.optimizer) == (4 * parameters, 4 * parameters, 0)
    assert seen.loss.last < seen.loss.first
