"""Training scripts of other people's kinds, and how one runs them.

None of them knows of dpwatch. Each takes the number of steps, prints every loss to the last bit,
and does the same at every run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
RANKS = 2

COMMANDS = {
    "ddp_loop": ["torchrun", "--nproc-per-node", str(RANKS)],
    "fsdp2": ["torchrun", "--nproc-per-node", str(RANKS)],
    "lightning_fit": [sys.executable],
    "hf_trainer": ["accelerate", "launch", "--multi_gpu", "--num_processes", str(RANKS),
                   "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"],
    "spawn": [sys.executable],
    "data_parallel": [sys.executable],
}  # fmt: skip
NEEDS = {"lightning_fit": "lightning", "hf_trainer": "transformers"}
EXIT_CODES = {"data_parallel": 7}


def words(name: str, steps: int, port: int) -> list[str]:
    """The command that runs a script."""
    program, *options = COMMANDS[name]
    if program == "torchrun":
        options += ["--master-port", str(port)]
    elif program == "accelerate":
        options += ["--main_process_port", str(port)]
    program = program if program == sys.executable else str(BIN / program)
    return [program, *options, str(HERE / f"{name}.py"), str(steps)]


def environment(port: int, **more: str) -> dict[str, str]:
    """What a user's shell would have, without a probe of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DPWATCH", "PYTHONPATH"))}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(port),
        "TRANSFORMERS_VERBOSITY": "error",
        **more,
    }


ABORTED = "terminate called without an active exception"
"""A rank's last word now and then, when its gloo group goes late (pytorch issue 190489)."""

MOST_ABORTED = 5


def run(
    command: list[str], env: dict[str, str], timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs to an end that torch itself did not spoil, as it may with and without a probe."""
    for _ in range(MOST_ABORTED):
        done = _run(command, env, timeout_s)
        if ABORTED not in done.stderr:
            break
    return done


def _run(
    command: list[str], env: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs to the end; a hang raises, and leaves nothing of it behind."""
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)
