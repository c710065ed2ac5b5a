"""Who a process is, by what its launcher left in the environment."""

from __future__ import annotations

import multiprocessing
import os
import sys
from types import SimpleNamespace

import pytest

from dpwatch.probe import identity
from dpwatch.probe.cpu import ThreadClock
from dpwatch.probe.identity import Identity


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    monkeypatch.setattr(sys, "argv", ["/home/me/my train.py"])


def test_a_plain_process():
    assert identity.resolve() == Identity(rank=0, world_size=1, local_rank=0)
    assert identity.run_id() == f"my-train-{os.getpid()}"
    assert identity.run_id(2) == f"my-train-{os.getpid()}-3"


def test_torchrun(monkeypatch):
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }.items():
        monkeypatch.setenv(name, value)
    assert identity.resolve() == Identity(rank=5, world_size=8, local_rank=1)
    assert identity.run_id() == f"my-train-{os.getppid()}-2"


def test_a_multiprocessing_child_has_its_parents_run(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=77))
    assert identity.run_id() == "my-train-77"
    assert not identity.resolve().known
    monkeypatch.setenv("RANK", "1")
    assert identity.resolve().known


def test_a_process_group_knows_best(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    group = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_rank=lambda: 1,
        get_world_size=lambda: 2,
        get_backend=lambda: "gloo",
    )
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    assert identity.resolve() == Identity(rank=1, world_size=2, local_rank=1, backend="gloo")


def test_a_named_run(monkeypatch):
    monkeypatch.setenv("DPWATCH_RUN_ID", "night/7")
    assert identity.run_id(4) == "night-7"


def test_a_package_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/trainer/__main__.py"])
    assert identity.script_name() == "trainer"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert identity.script_name() == "python"


def test_a_thread_clock_counts_its_own_thread():
    clock = ThreadClock()
    wall, cpu, _ = clock.read()
    total = sum(range(300_000))
    later, ran, _ = clock.read()
    assert total
    assert 0 < ran - cpu <= (later - wall) * 1.01 + 1_000_000
    clock.close()
    assert clock.read()[2] == 0


def over_hosts(monkeypatch, **more):
    shared = {
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_WORLD_SIZE": "4",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29500",
    }
    for name, value in {**shared, **more}.items():
        monkeypatch.setenv(name, value)
    return identity.run_id()


def test_hosts_of_a_run_agree_on_its_name(monkeypatch):
    first = over_hosts(monkeypatch, GROUP_RANK="0", DPWATCH_SESSION="abc")
    again = over_hosts(
        monkeypatch, GROUP_RANK="3", DPWATCH_SESSION="def", TORCHELASTIC_RESTART_COUNT="1"
    )
    assert first == again
    assert first.startswith("my-train-")
    assert first != over_hosts(monkeypatch, MASTER_PORT="29501")
    assert first != over_hosts(monkeypatch, MASTER_PORT="29500", TORCHELASTIC_RUN_ID="job")


def test_a_slurm_step_over_hosts(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NUM_NODES": "4",
        "DPWATCH_SESSION": "abc",
    }.items():
        monkeypatch.setenv(name, value)
    assert identity.run_id() == "my-train-77.2"
