"""`dpwatch run` in front of scripts that know nothing of it: nothing changes, all is seen."""

import json
import socket
import sys
from importlib.util import find_spec

import pytest

from tests import scripts

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
    watched = dpwatch_run(*command, options=["--json", str(told)], env=env)
    assert watched.returncode == plain.returncode == scripts.EXIT_CODES.get(name, 0), watched.stderr
    assert sorted(watched.stdout.splitlines()) == sorted(plain.stdout.splitlines())
    (run,) = json.loads(told.read_text())["runs"]
    assert run["strategy"] == STRATEGY.get(name, "ddp")
    assert run["state"] == "finished"
    ranks = 1 if name == "data_parallel" else scripts.RANKS
    assert [rank["rank"] for rank in run["ranks"]] == list(range(ranks))
    skipped = 2 if name == "data_parallel" else 0  # an exception, and a scaler's infinity
    assert {rank["steps"] for rank in run["ranks"]} == {STEPS - skipped}
    assert {rank["dropped"] for rank in run["ranks"]} == {0}
    measured = {each["op"]: each["bytes_per_step"] for each in run["collectives"]}
    assert {op: measured[op] for op in THEORY[name]} == THEORY[name]
