"""The demo's searches, sweeps and scenarios, as a user would start them."""

import json

import pytest

from tests.processes import dpwatch, processes_with

TINY = ("--d-model", "16", "--heads", "2", "--layers", "1", "--seq-len", "16")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--fault", "gremlin:0:5"), "unknown kind 'gremlin'; choose from: data, forward"),
        (("--sweep-gpus", "two"), "write numbers from 1 on, such as 1,2,4,8"),
        (("--sweep-gpus", "1,2", "--gpus", "4"), "leave --gpus out"),
        (("--scenario", "gil", "--strategy", "ddp"), "has its own strategies"),
        (("--find-max-batch", "--gpu-mem", "much"), "'much' is not a size"),
        (("--find-max-batch", "--scenario", "gil"), "not allowed with argument"),
        (("--find-max-batch", "--gpus", "0"), "--gpus 0 is too small"),
    ],
)
def test_wrong_use_ends_on_one_line_and_exit_code_2(arguments, line):
    done = dpwatch("demo", *arguments)
    assert done.returncode == 2
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_lists_the_scenarios():
    said = dpwatch("demo", "--help").stdout
    for name in ("oom", "straggler", "gil", "overlap", "reshard"):
        assert f"\n  {name} " in said


@pytest.mark.dist
def test_the_largest_batch_and_who_runs_out(private_runtime):
    more = ("--gpus", "3", "--strategy", "dp,ddp", "--gpu-mem", "600KiB", *TINY)
    done = dpwatch("demo", "--find-max-batch", *more, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["gpu_mem_bytes"]) == ("dpwatch.max_batch/1", 600 << 10)
    dp, ddp = found["strategies"]
    assert dp["ran_out"] == "vgpu:0"
    assert 0 < dp["batch_per_gpu"] < ddp["batch_per_gpu"]
    peaks = [device["peak_bytes"] for device in dp["devices"]]
    assert max(peaks[1:]) < peaks[0] <= 600 << 10
    assert f"dp: batch {dp['batch_per_gpu']} a device fits" in done.stderr
    assert list(private_runtime.iterdir()) == []
    assert processes_with(str(private_runtime)) == []


@pytest.mark.dist
def test_dps_line_rises_and_the_rings_does_not(private_runtime):
    more = ("--strategy", "dp,ddp", "--steps", "8", *TINY)
    done = dpwatch("demo", "--sweep-gpus", "2,4", *more, "--json")
    assert done.returncode == 0, done.stderr
    sweep = json.loads(done.stdout)
    assert sweep["schema"] == "dpwatch.sweep/1"
    traffic = {(p["strategy"], p["gpus"]): p["device0_traffic_bytes"] for p in sweep["points"]}
    assert traffic["dp", 4] == 3 * traffic["dp", 2]  # N − 1 others
    assert traffic["ddp", 4] == pytest.approx(1.5 * traffic["ddp", 2])  # 2 (N − 1)/N
    assert all(point["device0_peak_bytes"] for point in sweep["points"])
    assert "4/4: ddp on 4 devices: finished" in done.stderr


@pytest.mark.dist
def test_the_master_runs_out_of_memory_and_the_lesson_goes_on(private_runtime):
    done = dpwatch("demo", "--scenario", "oom", "--steps", "12", "--json")
    assert done.returncode == 0, done.stderr
    assert "2/3: dp " in done.stderr
    fits, fails, ddp = json.loads(done.stdout)["runs"]
    assert [fits["state"], fails["state"], ddp["state"]] == ["finished", "failed", "finished"]
    first, *others = (rank["memory"]["peak_bytes"] for rank in fits["ranks"])
    assert first > 4.5 * max(others)  # 10 on the master beside 2 on the rest
    assert {"oom_risk", "master_imbalance"} <= {d["kind"] for d in fits["diagnoses"]}
    assert fails["reason"].startswith("rank 0: OutOfMemoryError: vgpu:0 out of memory. Tried to ")
    assert [d["kind"] for d in fails["diagnoses"]] == ["oom"]
    assert ddp["title"].startswith("batch 12")


@pytest.mark.dist
def test_out_of_memory_is_a_failure_where_it_is_no_lesson(private_runtime):
    more = ("--strategy", "ddp,dp", "--gpus", "2", "--gpu-mem", "100KiB", *TINY)
    done = dpwatch("demo", *more, "--json")
    assert done.returncode == 1
    (run,) = json.loads(done.stdout)["runs"]
    assert run["state"] == "failed"
    assert "OutOfMemoryError: vgpu:" in run["reason"]
    assert "out of memory. Tried to allocate" in done.stderr
    *progress, error = done.stderr.splitlines()
    assert [line.split(":")[0] for line in progress] == ["1/2", "1/2"]
    assert error.startswith("dpwatch: ")
    assert processes_with(str(private_runtime)) == []
