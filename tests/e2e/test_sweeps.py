"""Which processes are one run, under `dpwatch run`: a job's ranks are, who trains alone is not."""

import json
import sys
from pathlib import Path

import pytest

from tests import scripts
from tests.e2e.sweeps import WIDTHS
from tests.e2e.test_run import dpwatch_run, free_port

pytestmark = [pytest.mark.dist, pytest.mark.scripts]

SWEEPS = str(Path(__file__).parent / "sweeps.py")


def runs(tmp_path, how):
    """What a summary says of all that was trained, in the order it began."""
    port = free_port()
    env = scripts.environment(
        port, DPWATCH_RUNTIME_DIR=str(tmp_path / "rt"), DPWATCH_HUB_LINGER_S="1"
    )
    target = tmp_path / "told.json"
    command = [sys.executable, SWEEPS, how, str(port)]
    done = dpwatch_run(*command, options=["--json", str(target), "--fail-on", "critical"], env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())["runs"]
    for run in found:
        assert (run["state"], run["reason"], run["command_exit"]) == ("finished", "", 0)
        assert {rank["dropped"] for rank in run["ranks"]} == {0}
        assert run["title"] in done.stderr
    return found


@pytest.mark.parametrize("how", ["spawn", "fork", "forkserver", "processes", "tasks"])
def test_trainings_side_by_side_are_runs_of_their_own(tmp_path, how):
    found = sorted(runs(tmp_path, how), key=lambda run: run["loss"]["first"])
    assert [round(run["loss"]["last"]) for run in found] == list(WIDTHS)
    assert [round(run["loss"]["first"]) for run in found] == list(WIDTHS)
    assert [run["world_size"] for run in found] == [1, 1]
    # A pool ends its workers as soon as all is done, and what one recorded last may go with it.
    for run, width in zip(found, WIDTHS, strict=True):
        assert width - 2 <= run["steps"] <= width
        assert run["model"]["params"] == 16 * width + width
    assert len({run["title"] for run in found}) == 2
    assert len({run["run_id"] for run in found}) == (1 if how == "tasks" else 2)


def test_ranks_with_sessions_of_their_own_are_one_run(tmp_path):
    (run,) = runs(tmp_path, "sessions")
    assert (run["world_size"], run["steps"]) == (2, 20)
    assert [(rank["rank"], rank["exit"]) for rank in run["ranks"]] == [(0, 0), (1, 0)]


def test_one_job_after_another_at_the_same_port_is_another_run(tmp_path):
    found = runs(tmp_path, "jobs")
    assert [run["steps"] for run in found] == [10, 15]
    assert [len(run["ranks"]) for run in found] == [2, 2]
    assert found[0]["title"] != found[1]["title"]
