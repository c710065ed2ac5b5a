"""Runs a script of this directory as the ranks of a gloo group and collects their reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def run_ranks(tmp_path_factory):
    def run(script, world=2):
        """Each rank's report: the JSON object in its last line of output."""
        place = tmp_path_factory.mktemp("ranks")
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(HERE.parents[2]),
        }  # fmt: skip
        command = [sys.executable, str(HERE / script), str(place / "store"), str(world)]
        ranks = []
        try:
            for rank in range(world):
                errors = (place / f"{rank}.err").open("w+")
                process = subprocess.Popen(
                    [*command, str(rank)], env=environment, text=True,
                    stdout=subprocess.PIPE, stderr=errors,
                )  # fmt: skip
                ranks.append((process, errors))
            return [_report(process, errors) for process, errors in ranks]
        finally:
            for process, errors in ranks:
                process.kill()
                process.wait()
                process.stdout.close()
                errors.close()

    return run


def _report(process, errors):
    output, _ = process.communicate(timeout=TIMEOUT_S)
    errors.seek(0)
    assert process.returncode == 0, errors.read()
    return json.loads(output.splitlines()[-1])
