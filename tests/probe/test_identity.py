"""A process's identity: by launcher, process group, or the group it is about to join."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from dpwatch.probe.send import identity
from dpwatch.probe.send.identity import Identity
from dpwatch.probe.steps.thread_clock import ThreadClock

ALONE = Identity(rank=0, world_size=1, local_rank=0)


def rank(number: int, size: int = 2, **more: Any) -> Identity:
    return Identity(**{"rank": number, "world_size": size, "local_rank": number, **more})


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    for name in (
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "TORCHELASTIC_ERROR_FILE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    monkeypatch.setattr(sys, "argv", ["/home/me/my train.py"])
    monkeypatch.setattr(identity, "_default_store", lambda: None)


@pytest.fixture
def told(monkeypatch):
    """Sets a launcher's environment variables."""

    def tell(**env: str) -> None:
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.fixture
def child(monkeypatch):
    """Makes this process look like a multiprocessing child."""
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=77))
    process = SimpleNamespace(name="SpawnPoolWorker-1")
    monkeypatch.setattr(multiprocessing, "current_process", lambda: process)


@pytest.fixture
def group(monkeypatch):
    """Gives this process a process group of two ranks, as rank 1, with a store."""

    def make(**store: Any) -> None:
        dist = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rank=lambda: 1,
            get_world_size=lambda: 2,
            get_backend=lambda: "gloo",
        )
        monkeypatch.setitem(sys.modules, "torch.distributed", dist)
        met = SimpleNamespace(underlying_store=SimpleNamespace(**store))
        monkeypatch.setattr(identity, "_default_store", lambda: met)

    return make


def test_a_plain_process_is_rank_0_of_1():
    assert identity.resolve() == ALONE
    assert identity.run_id(ALONE) == f"my-train-{os.getpid()}"
    assert identity.run_id(ALONE, 2) == f"my-train-{os.getpid()}-3"
    assert identity.title(ALONE) == "my-train"


TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_ab/none_cd/attempt_2/1/error.json",
}


def test_torchrun_s_ranks_are_one_run_and_its_attempts_are_not(told):
    told(**TORCHRUN)
    me = identity.resolve()
    assert me == Identity(rank=5, world_size=8, local_rank=1)
    first = identity.run_id(me)
    told(RANK="6", TORCHELASTIC_ERROR_FILE="/tmp/torchelastic_ab/none_cd/attempt_2/2/error.json")
    assert identity.run_id(me) == first
    told(TORCHELASTIC_RESTART_COUNT="3")
    assert identity.run_id(me) != first


def test_another_torchrun_at_the_same_port_is_another_run(told):
    told(**TORCHRUN)
    first = identity.run_id(rank(5, 8))
    told(TORCHELASTIC_ERROR_FILE="/tmp/torchelastic_xy/none_zz/attempt_2/1/error.json")
    assert identity.run_id(rank(5, 8)) != first


def test_ranks_with_parents_and_sessions_of_their_own_are_one_run(told, monkeypatch):
    """As with Ray, Dask, mpirun, and ranks started by hand in several terminals."""
    told(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29655")
    first = identity.run_id(identity.resolve())
    monkeypatch.setattr(os, "getpgid", lambda pid: 4711)
    monkeypatch.setattr(os, "getppid", lambda: 4711)
    assert identity.run_id(identity.resolve()) == first
    told(MASTER_PORT="29656")
    assert identity.run_id(identity.resolve()) != first
    told(DPWATCH_SESSION="abc")
    assert identity.run_id(identity.resolve()).startswith("abc-my-train-")


def test_a_multiprocessing_child_that_trains_alone_is_a_run_of_its_own(child):
    me = identity.resolve()
    assert not me.known  # it may be about to join a group
    assert identity.run_id(me) == f"my-train-{os.getpid()}"
    assert (identity.title(me), identity.worker(me)) == (
        "my-train SpawnPoolWorker-1",
        "SpawnPoolWorker-1",
    )


def test_a_rank_that_a_child_inherited_is_not_its_own(child, told, monkeypatch):
    told(RANK="1", WORLD_SIZE="2", MASTER_PORT="29500")
    assert identity.resolve() == rank(1)  # it has set them itself
    monkeypatch.setattr(identity, "_inherited", lambda name, env: True)
    assert identity.resolve() == Identity(rank=0, world_size=1, local_rank=0, known=False)


def test_inherited_variables_are_detected_by_the_initial_environment(told):
    told(NEW="1")
    assert not identity._inherited("NEW", os.environ)
    name = next(n for n, v in os.environ.items() if f"{n}={v}".encode() in started_with())
    assert identity._inherited(name, os.environ)


def started_with() -> list[bytes]:
    with open("/proc/self/environ", "rb") as file:
        return file.read().split(b"\0")


@pytest.mark.parametrize(
    ("store", "other"),
    [({"port": 29500}, {"port": 29501}), ({"path": "/tmp/a"}, {"path": "/tmp/b"})],
)
def test_runs_are_identified_by_their_rendezvous(group, store, other, child):
    group(**store)
    me = identity.resolve()
    assert me == rank(1, backend="gloo")
    first = identity.run_id(me)
    assert identity.title(me) == "my-train"  # of which it is no worker that trains alone
    group(**other)
    assert identity.run_id(me) != first


def test_a_process_group_takes_precedence_over_the_environment(group, told):
    told(RANK="5", WORLD_SIZE="8")
    group()
    assert identity.resolve() == rank(1, backend="gloo")


def test_a_rank_keeps_its_run_id_when_it_joins(group, told):
    told(RANK="1", WORLD_SIZE="2", MASTER_PORT="29500")
    before = identity.run_id(identity.resolve())
    group(port=29500)
    assert identity.run_id(identity.resolve()) == before


def waiting_in_init(do, **given):
    """What `do` returns for a thread that is in `init_process_group`."""
    source = (
        "def init_process_group(init_method=None, world_size=-1, rank=-1, store=None):\n"
        "    entered.set()\n"
        "    go.wait(60)\n"
    )
    entered, go = threading.Event(), threading.Event()
    names: dict[str, Any] = {"entered": entered, "go": go}
    exec(compile(source, os.path.join("x", identity._C10D), "exec"), names)
    with ThreadPoolExecutor(1) as pool:
        ident = pool.submit(threading.get_ident).result()
        stands = pool.submit(names["init_process_group"], **given)
        assert entered.wait(60)
        try:
            return do(ident)
        finally:
            go.set()
            stands.result()


@pytest.mark.parametrize(
    ("given", "met"),
    [
        ({"init_method": "tcp://127.0.0.1:29500"}, {"port": 29500}),
        ({"init_method": "tcp://localhost:29500?x=1"}, {"port": 29500}),
        ({"init_method": "file:///tmp/a"}, {"path": "/tmp/a"}),
        ({"store": SimpleNamespace(port=29500)}, {"port": 29500}),
    ],
)
def test_a_joining_rank_is_identified_by_its_arguments(group, given, met):
    me, run = waiting_in_init(
        lambda ident: (identity.resolve(ident), identity.run_id(rank(1), 0, ident)),
        rank=1,
        world_size=2,
        **given,
    )
    assert me == rank(1)
    group(**met)
    assert run == identity.run_id(rank(1))


def test_a_joining_process_without_a_rank_is_not_known_yet():
    assert not waiting_in_init(identity.resolve).known


def test_a_joining_rank_is_identified_by_its_launcher(told):
    told(RANK="1", WORLD_SIZE="2")
    assert waiting_in_init(identity.resolve) == rank(1)
    # A script may want more ranks than were started.
    assert waiting_in_init(identity.resolve, rank=1, world_size=3) == rank(1, 3)


def test_ranks_without_a_store_are_identified_by_their_launcher(told):
    told(PMIX_NAMESPACE="job-7")
    assert identity.run_id(rank(1)) == "my-train-job-7"


def test_dpwatch_run_id_names_the_run(told):
    told(DPWATCH_RUN_ID="night/7")
    assert identity.run_id(ALONE, 4) == "night-7"


def test_a_package_run_is_named_after_the_package(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/trainer/__main__.py"])
    assert identity.script_name() == "trainer"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert identity.script_name() == "python"


def a_task() -> object:
    return identity.task()


def test_a_pool_s_tasks_are_distinguished():
    assert identity.task() is None
    with multiprocessing.get_context("fork").Pool(1) as pool:
        first, second = pool.apply(a_task), pool.apply(a_task)
    assert first is not None
    assert first != second


def test_a_thread_clock_counts_its_own_thread():
    clock = ThreadClock()
    wall, cpu, _ = clock.read()
    total = sum(range(300_000))
    later, ran, _ = clock.read()
    assert total
    assert 0 < ran - cpu <= (later - wall) * 1.01 + 1_000_000
    clock.close()
    assert clock.read()[2] == 0


def over_hosts(told, **more):
    shared = {
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_WORLD_SIZE": "4",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29500",
    }
    told(**{**shared, **more})
    return identity.run_id(rank(0, 8))


def test_hosts_of_a_run_agree_on_its_name(told):
    first = over_hosts(told, GROUP_RANK="0", DPWATCH_SESSION="abc")
    again = over_hosts(told, GROUP_RANK="3", DPWATCH_SESSION="def", TORCHELASTIC_RESTART_COUNT="1")
    assert first == again
    assert first.startswith("my-train-")
    assert first != over_hosts(told, MASTER_PORT="29501")
    assert first != over_hosts(told, MASTER_PORT="29500", TORCHELASTIC_RUN_ID="job")


def test_a_slurm_step_identifies_a_multi_host_run(told):
    told(SLURM_JOB_ID="77", SLURM_STEP_ID="2", SLURM_STEP_NUM_NODES="4", DPWATCH_SESSION="abc")
    assert identity.run_id(rank(0, 8)) == "my-train-77.2"


def test_a_process_that_trains_alone_in_a_job_over_hosts_is_its_own_run(told):
    told(SLURM_JOB_ID="77", SLURM_STEP_ID="2", SLURM_STEP_NUM_NODES="4")
    assert identity.run_id(ALONE) == f"my-train-{os.getpid()}"


def test_a_clock_that_outlives_its_module_says_nothing():
    """As one does that the script's last globals hold when the interpreter ends."""
    code = (
        "from dpwatch.probe.steps import thread_clock\n"
        "clock = thread_clock.ThreadClock()\n"
        "vars(thread_clock).clear()\n"
        "del clock\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
