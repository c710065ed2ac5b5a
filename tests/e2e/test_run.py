"""`dpwatch run` in front of scripts that know nothing of it: nothing changes, all is seen."""

import json
import re
import socket
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import scripts
from tests.hubs import until, watching

pytestmark = [pytest.mark.dist, pytest.mark.scripts]
STEPS = 12
FLOAT = 4


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def dpwatch_run(*command, options=(), env):
    ours = [sys.executable, "-m", "dpwatch", "run", *options, "--", *command]
    return scripts.run(ours, env)


def linear(inputs, outputs):
    return (inputs * outputs + outputs) * FLOAT


def gpt2(vocabulary, positions, width, layers):
    block = 2 * 2 * width * FLOAT  # two norms
    block += linear(width, 3 * width) + linear(width, width)
    block += linear(width, 4 * width) + linear(4 * width, width)
    return (vocabulary + positions) * width * FLOAT + layers * block + 2 * width * FLOAT


@contextmanager
def peaks_from_outside(place):
    """The highest resident size by process, of those that have this runtime directory."""
    peaks, done = {}, threading.Event()

    def look():
        while not done.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                peak = peak_of(process, place)
                if peak is not None:
                    peaks[int(process.name)] = peak

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def peak_of(process, place):
    try:
        if place.encode() not in (process / "environ").read_bytes():
            return None
        told = re.search(r"VmHWM:\s*(\d+) kB", (process / "status").read_text())
    except OSError:  # it has ended
        return None
    return int(told[1]) * 1024 if told else None


LAYERS = 4 * linear(64, 64)
THEORY = {
    "ddp_loop": {"all_reduce": linear(64, 256) + linear(256, 10)},
    # Each layer is gathered in forward and in backward; a rank hands in its half.
    "fsdp2": {"all_gather": 2 * LAYERS // 2, "reduce_scatter": LAYERS},
    "lightning_fit": {"all_reduce": linear(64, 128) + linear(128, 10)},
    "hf_trainer": {"all_reduce": gpt2(96, 16, 32, 2)},
    "spawn": {"all_reduce": LAYERS, "broadcast": LAYERS},
    "data_parallel": {},
}
PERCEPTRON = linear(64, 256) + linear(256, 10)
CLASSIFIER = linear(64, 128) + linear(128, 10)
GPT2, GPT2_TENSORS = gpt2(96, 16, 32, 2), 28


def adam(params, tensors):
    return 2 * params + tensors * FLOAT  # and its step, a tensor a parameter


# What a rank keeps: parameters (and as many gradients), optimizer state, DDP's buckets.
MEMORY = {
    "ddp_loop": (PERCEPTRON, adam(PERCEPTRON, 4), PERCEPTRON),
    "fsdp2": (LAYERS // 2, adam(LAYERS // 2, 8), 0),
    "lightning_fit": (CLASSIFIER, adam(CLASSIFIER, 4), CLASSIFIER),
    "hf_trainer": (GPT2, adam(GPT2, GPT2_TENSORS), GPT2),
    "spawn": (LAYERS, adam(LAYERS // 2, 4), LAYERS),  # ZeRO: the state of half of them
    "data_parallel": (
        linear(64, 128) + linear(128, 64), linear(64, 128) + adam(linear(128, 64), 2), 0
    ),
}  # fmt: skip
STRATEGY = {"fsdp2": "fsdp", "data_parallel": "single"}


@pytest.mark.parametrize("name", scripts.COMMANDS)
def test_a_script_runs_as_it_did_and_is_seen_whole(name, tmp_path):
    if not find_spec(scripts.NEEDS.get(name, "torch")):
        pytest.skip(f"{scripts.NEEDS[name]} is not installed")
    port = free_port()
    command = scripts.words(name, STEPS, port)
    env = scripts.environment(
        port, DPWATCH_RUNTIME_DIR=str(tmp_path / "rt"), DPWATCH_HUB_LINGER_S="1"
    )
    plain = scripts.run(command, env)
    told = tmp_path / "summary.json"
    with peaks_from_outside(env["DPWATCH_RUNTIME_DIR"]) as peaks:
        watched = dpwatch_run(*command, options=["--json", str(told)], env=env)
    assert watched.returncode == plain.returncode == scripts.EXIT_CODES.get(name, 0), watched.stderr
    assert sorted(watched.stdout.splitlines()) == sorted(plain.stdout.splitlines())
    (run,) = json.loads(told.read_text())["runs"]
    assert run["strategy"] == STRATEGY.get(name, "ddp")
    assert run["state"] == ("failed" if plain.returncode else "finished")
    ranks = 1 if name == "data_parallel" else scripts.RANKS
    assert [rank["rank"] for rank in run["ranks"]] == list(range(ranks))
    skipped = 2 if name == "data_parallel" else 0  # an exception, and a scaler's infinity
    assert {rank["steps"] for rank in run["ranks"]} == {STEPS - skipped}
    assert {rank["dropped"] for rank in run["ranks"]} == {0}
    measured = {each["op"]: each["bytes_per_step"] for each in run["collectives"]}
    assert {op: measured[op] for op in THEORY[name]} == THEORY[name]
    params, optimizer, buckets = MEMORY[name]
    for rank in run["ranks"]:
        kept = rank["memory"]["at_step_end"]
        assert (kept["params"], kept["grads"], kept["optimizer"]) == (params, params, optimizer)
        assert kept["buffers"] == buckets
        assert rank["memory"]["peak_bytes"] == pytest.approx(peaks[rank["pid"]], rel=0.02)
        assert (rank["memory"]["source"], rank["memory"]["peak_of"]) == ("rss", "process")


SPEAKS = """
import sys, torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(3):
    weight.square().sum().backward()
    optimizer.step()
    print("step", step)
sys.stderr.write("\\x1b[33mno GPU here\\x1b[0m\\n")
raise ValueError("the data is broken")
"""


def test_what_a_script_prints_and_dies_of_reaches_the_viewer(tmp_path, private_runtime):
    script = tmp_path / "speaks.py"
    script.write_text(SPEAKS)
    env = scripts.environment(0, DPWATCH_RUNTIME_DIR=str(private_runtime))
    plain = scripts.run([sys.executable, str(script)], env)
    env["DPWATCH_HUB_LINGER_S"] = "5"
    with watching() as watcher:
        watched = dpwatch_run(sys.executable, str(script), options=["--quiet"], env=env)
        (view,) = until(watcher, lambda seen: seen.runs and seen.runs[0].run.state == "failed").runs
    assert (watched.returncode, watched.stdout) == (plain.returncode, plain.stdout)
    assert watched.stderr == plain.stderr
    (rank,) = view.output
    told = {name: [p.text for p in rank.lines if p.stream == name] for name in ("out", "err")}
    assert told["out"] == plain.stdout.splitlines() == ["step 0", "step 1", "step 2"]
    assert told["err"] == ["no GPU here", *plain.stderr.splitlines()[1:]]
    assert told["err"][-1] == "ValueError: the data is broken"


HEALTHY_STEPS = 1000
HOSTS = {"cpu_oversubscribed", "comm_bound", "overlap_poor"}
"""What this host lacks, and what gloo costs on it, are no faults of a script's."""


@pytest.mark.parametrize("name", scripts.COMMANDS)
def test_a_thousand_healthy_steps_raise_nothing(name, tmp_path):
    if not find_spec(scripts.NEEDS.get(name, "torch")):
        pytest.skip(f"{scripts.NEEDS[name]} is not installed")
    port = free_port()
    env = scripts.environment(
        port, DPWATCH_RUNTIME_DIR=str(tmp_path / "rt"), DPWATCH_HUB_LINGER_S="1"
    )
    told = tmp_path / "summary.json"
    command = scripts.words(name, HEALTHY_STEPS, port)
    watched = dpwatch_run(*command, options=["--json", str(told)], env=env)
    assert watched.returncode == scripts.EXIT_CODES.get(name, 0), watched.stderr
    (run,) = json.loads(told.read_text())["runs"]
    raised = {each["kind"]: each["text"] for each in run["alerts"] + run["diagnoses"]}
    if watched.returncode:
        assert "exit code 7" in raised.pop("rank_lost")
    # Steps of a few milliseconds on a host without cores enough: what is told by times may be its.
    by_times = {"straggler", "input_bound", "wait_in_turn"}
    crowded = by_times if "cpu_oversubscribed" in raised else set()
    assert not raised.keys() - HOSTS - crowded, raised
