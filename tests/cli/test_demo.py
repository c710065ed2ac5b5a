"""The demo, trained for real: its figures against sums by hand, and nothing left of it after."""

import json
import signal

import pytest

from tests.processes import (
    dpwatch,
    eventually,
    nothing_but_the_last,
    processes_with,
    start,
)

pytestmark = pytest.mark.dist
STEPS = 20
GPUS = 4
ADAM_COUNTER_BYTES = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    done = dpwatch(
        *("demo", "--gpus", str(GPUS), "--steps", str(STEPS), "--json"),
        DPWATCH_RUNTIME_DIR=str(place),
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(" on ")[0] for line in done.stderr.splitlines()] == [
        "1/3: dp", "1/3: dp", "2/3: ddp", "3/3: fsdp"
    ]  # fmt: skip
    assert nothing_but_the_last(place)
    assert processes_with(str(place)) == []
    summary = json.loads(done.stdout)
    assert summary["schema"] == "dpwatch.summary/1"
    return {run["strategy"]: run for run in summary["runs"]}


@pytest.fixture(scope="module")
def model():
    from dpwatch.trainer.config import TrainConfig
    from dpwatch.trainer.model import build_model
    from dpwatch.trainer.options import MODELS

    config = TrainConfig(strategy="single", **MODELS["demo"])
    parameters = list(build_model(config).parameters())
    return {
        "params": sum(p.numel() for p in parameters),
        "param_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "tensors": len(parameters),
    }


def test_all_ran_to_the_end_and_learned(runs):
    assert list(runs) == ["dp", "ddp", "fsdp"]
    for run in runs.values():
        assert (run["state"], run["steps"]) == ("finished", STEPS)
        assert run["loss"]["last"] < run["loss"]["first"] - 0.5
        assert run["samples_per_s"] > 0
    lasts = [run["loss"]["last"] for run in runs.values()]
    assert lasts == pytest.approx(lasts[:1] * 3, abs=1e-3)


def test_the_model_is_counted_right(runs, model):
    for run in runs.values():
        assert run["model"] == {k: model[k] for k in ("params", "param_bytes")}


def test_dp_loads_device_0(runs):
    run = runs["dp"]
    assert [r["device"] for r in run["ranks"]] == [f"vgpu:{d}" for d in range(GPUS)]
    first, *others = run["ranks"]
    assert run["balance"]["peak_device0_over_median"] > 3
    assert run["balance"]["traffic_device0_over_median"] == pytest.approx(GPUS - 1)
    assert all(first["memory"]["peak_bytes"] > 3 * r["memory"]["peak_bytes"] for r in others)
    assert "master_imbalance" in {d["kind"] for d in run["diagnoses"]}


def test_dp_copies_are_the_algorithms(runs, model):
    moved = {}
    for copy in runs["dp"]["transfers"]:
        moved[copy["kind"]] = moved.get(copy["kind"], 0) + copy["bytes_per_step"]
    assert moved["replicate"] == moved["reduce"] == (GPUS - 1) * model["param_bytes"]
    assert moved["gather"] == moved["scatter_grad"]
    first = runs["dp"]["ranks"][0]
    assert first["sent_bytes_per_step"] == (
        moved["replicate"] + moved["scatter"] + moved["scatter_grad"]
    )
    assert first["received_bytes_per_step"] == moved["reduce"] + moved["gather"]


def test_ddp_reduces_exactly_the_gradients(runs, model):
    run = runs["ddp"]
    (reduce,) = [c for c in run["collectives"] if c["op"] == "all_reduce"]
    assert reduce["bytes_per_step"] == model["param_bytes"]
    assert reduce["ranks"] == GPUS
    ring = 2 * (GPUS - 1) * model["param_bytes"] // GPUS
    assert {r["sent_bytes_per_step"] for r in run["ranks"]} == {ring}


def test_ddp_is_balanced(runs):
    run = runs["ddp"]
    assert run["balance"]["peak_max_over_min"] == pytest.approx(1.0, abs=0.02)
    assert run["balance"]["traffic_device0_over_median"] == 1.0
    assert "master_imbalance" not in {d["kind"] for d in run["diagnoses"]}


def test_sharding_keeps_a_quarter_and_peaks_lower(runs):
    def kept(run):
        at_end = run["ranks"][0]["memory"]["at_step_end"]
        return sum(at_end[name] for name in ("params", "grads", "optimizer"))

    def peak(run):
        return max(rank["memory"]["peak_bytes"] for rank in run["ranks"])

    assert kept(runs["fsdp"]) == pytest.approx(kept(runs["ddp"]) / GPUS, rel=0.02)
    assert peak(runs["fsdp"]) < 0.6 * peak(runs["ddp"])
    assert runs["fsdp"]["balance"]["traffic_device0_over_median"] == pytest.approx(1, abs=0.01)


def test_model_state_is_held_exactly(runs, model):
    adam = 2 * model["param_bytes"] + ADAM_COUNTER_BYTES * model["tensors"]
    holders = [runs["dp"]["ranks"][0], *runs["ddp"]["ranks"]]
    for rank in holders:
        held = rank["memory"]["at_step_end"]
        assert held["params"] == held["grads"] == model["param_bytes"]
        assert held["optimizer"] == adam
    for rank in runs["dp"]["ranks"][1:]:
        held = rank["memory"]["at_step_end"]
        assert (held["params"], held["grads"], held["optimizer"]) == (0, 0, 0)


def test_parts_sum_to_the_whole(runs):
    names = ("params", "grads", "optimizer", "activations", "buffers", "temp", "gathered")
    for run in runs.values():
        for rank in run["ranks"]:
            memory, phases = rank["memory"], rank["phases_ms"]
            assert sum(memory[n] for n in names) == memory["peak_bytes"]
            parts = [ms for ms in phases.values() if ms is not None]
            assert sum(parts) == pytest.approx(rank["step_ms"]["p50"])
            shares = [rank[n] for n in ("gil_wait", "idle", "runqueue_wait")]
            assert all(0 <= share <= 1 for share in shares)
            assert sum(shares) <= 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_step_ends_everything(private_runtime, signum, code):
    demo = start("dpwatch", "demo", "--strategy", "ddp", "--headless", "--gpus", "2",
                 "--steps", "100000")  # fmt: skip
    eventually(lambda: any(private_runtime.glob("*/run.json")), "a hub")
    demo.send_signal(signum)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == code
    assert "Traceback" not in errors
    eventually(lambda: not processes_with(str(private_runtime)), "every process gone")
    assert nothing_but_the_last(private_runtime)


def test_killing_the_demo_leaves_no_training(private_runtime):
    demo = start("dpwatch", "demo", "--strategy", "dp", "--headless", "--gpus", "2",
                 "--steps", "100000", DPWATCH_HUB_LINGER_S="1")  # fmt: skip
    eventually(lambda: json.loads(dpwatch("--once", "--json").stdout)["runs"], "a run")
    demo.kill()
    demo.communicate(timeout=60)
    # The hub stays for late viewers, then goes too.
    eventually(lambda: not processes_with(str(private_runtime)), "every process gone")


def test_a_killed_rank_is_said(private_runtime):
    demo = start("dpwatch", "demo", "--strategy", "ddp", "--headless", "--gpus", "2",
                 "--steps", "100000")  # fmt: skip

    def a_rank():
        seen = json.loads(dpwatch("--once", "--json").stdout)["runs"]
        ranks = seen[0]["ranks"] if seen else []
        return ranks if len(ranks) == 2 and ranks[1]["steps"] > 0 else None

    ranks = eventually(a_rank, "two ranks that train")
    import os

    os.kill(ranks[1]["pid"], signal.SIGKILL)
    told, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert errors.splitlines()[-1].startswith("dpwatch: rank 1")
    assert "SIGKILL" in errors
    assert " · lost · " in told.splitlines()[0]
    assert told.splitlines()[4].split()[2] == "lost"
    assert "Traceback" not in errors
    eventually(lambda: not processes_with(str(private_runtime)), "every process gone")
