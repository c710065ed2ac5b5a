"""Frameworks' own collectives, each with its calls and bytes, in runs under `dpwatch run`."""

import functools
import json
import sys
from importlib.util import find_spec

import pytest

from tests import scripts
from tests.e2e.added import ADDED
from tests.e2e.test_run import dpwatch_run, free_port

pytestmark = [pytest.mark.dist, pytest.mark.scripts]

NEEDS = {"lightning": "lightning", "accelerate": "accelerate", "trainer": "transformers"}
ROWS = [(name, row) for name, rows in ADDED.items() for row in rows]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The run of a script, what it has printed, and the folder it had; each is run once."""

    @functools.cache
    def run(name):
        if not find_spec(NEEDS.get(name, "torch")):
            pytest.skip(f"{NEEDS[name]} is not installed")
        port, place = free_port(), tmp_path_factory.mktemp(name)
        launch = [
            str(scripts.BIN / "torchrun"),
            "--nproc-per-node",
            "2",
            "--master-port",
            str(port),
        ]
        command = [sys.executable] if name == "lightning" else launch
        told, folder = place / "summary.json", str(place / "written")
        env = scripts.environment(
            port, DPWATCH_RUNTIME_DIR=str(place / "rt"), DPWATCH_HUB_LINGER_S="1"
        )
        script = str(scripts.HERE / f"adds_{name}.py")
        ended = dpwatch_run(
            *command, script, folder, options=["--quiet", "--json", str(told)], env=env
        )
        assert ended.returncode == 0, ended.stderr
        (found,) = json.loads(told.read_text())["runs"]
        printed = [line for line in ended.stdout.splitlines() if line.startswith('{"')]
        return found, json.loads(printed[0]) if printed else {}, folder

    return run


@pytest.mark.parametrize(
    ("name", "row"), ROWS, ids=lambda each: each if isinstance(each, str) else "-".join(each[:4])
)
def test_what_a_framework_adds(seen, name, row):
    run, printed, place = seen(name)
    found = [
        each
        for each in run["issuers"]
        if (each["framework"], each["purpose"], each["op"], each["dtype"]) == row[:4]
    ]
    nbytes = row.nbytes(printed, place) if callable(row.nbytes) else row.nbytes
    assert sum(each["calls"] for each in found) == row.calls
    assert sum(each["bytes"] for each in found) == nbytes


@pytest.mark.parametrize("name", ADDED)
def test_nothing_else_is_told_of_the_framework(seen, name):
    """What is not in its rows here is DDP's start, which the rows of torch have."""
    run, *_ = seen(name)
    known = {row[:4] for row in ADDED[name]} | {row[:4] for row in ADDED["torch"]}
    found = {
        (each["framework"], each["purpose"], each["op"], each["dtype"]) for each in run["issuers"]
    }
    assert found <= known


def test_what_comes_every_step_is_told_as_that(seen):
    run, *_ = seen("lightning")
    (flag,) = [each for each in run["issuers"] if each["purpose"] == "SIGTERM flag"]
    assert (flag["count_per_step"], flag["bytes_per_step"]) == (1.0, 8)
    assert (flag["first_step"], flag["last_step"]) == (0, run["steps"] - 1)
