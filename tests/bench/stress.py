"""A hundred repeats of each script under `dpwatch run`: not one hang, not one bit changed.

    python -m tests.bench.stress [--repeats N] [SCRIPT…]

Each repeat must end within the time limit with the exit code and the output of a run without the
probe, and its summary must hold every step of every rank. Prints a line a script; exits with 1 if
any repeat was not like that.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import scripts

STEPS = 6
LIMIT_S = 180


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("names", nargs="*", metavar="SCRIPT", help=", ".join(scripts.COMMANDS))
    options = parser.parse_args()
    bad = 0
    for name in options.names or scripts.COMMANDS:
        bad += _repeat(name, options.repeats)
    return 1 if bad else 0


def _repeat(name: str, repeats: int) -> int:
    with tempfile.TemporaryDirectory() as place:
        expected = _once(name, Path(place), watched=False)[0]
        took_s, wrong = [], []
        for number in range(repeats):
            if number and number % 25 == 0:
                print(f"{name}: {number - len(wrong)} of {number} so far", flush=True)
            began = time.monotonic()
            try:
                seen, summary, errors = _once(name, Path(place), watched=True)
            except subprocess.TimeoutExpired:
                wrong.append(f"{number}: hung")
                continue
            took_s.append(time.monotonic() - began)
            if seen != expected:
                wrong.append(f"{number}: other output or exit code {seen[0]}: {errors[-500:]}")
            elif fault := _fault(name, summary):
                wrong.append(f"{number}: {fault}")
    middle = f"{statistics.median(took_s):.1f}" if took_s else "–"
    print(f"{name}: {repeats - len(wrong)} of {repeats} as without it, {middle} s each", flush=True)
    for each in wrong:
        print(f"  {each}", flush=True)
    return len(wrong)


def _once(name: str, place: Path, *, watched: bool) -> tuple[tuple[int, list[str]], dict, str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    told = place / "summary.json"
    env = scripts.environment(port, DPWATCH_RUNTIME_DIR=str(place / "rt"), DPWATCH_HUB_LINGER_S="1")
    command = scripts.words(name, STEPS, port)
    if watched:
        ours = [sys.executable, "-m", "dpwatch", "run", "--quiet", "--json", str(told), "--"]
        command = [*ours, *command]
    done = scripts.run(command, env, LIMIT_S)
    summary = json.loads(told.read_text()) if watched else {}
    return (done.returncode, sorted(done.stdout.splitlines())), summary, done.stderr


def _fault(name: str, summary: dict) -> str:
    if len(summary["runs"]) != 1:
        return f"{len(summary['runs'])} runs"
    (run,) = summary["runs"]
    ranks = {rank["rank"]: (rank["steps"], rank["dropped"]) for rank in run["ranks"]}
    steps = STEPS - (name == "data_parallel")  # one step is an exception
    world = 1 if name == "data_parallel" else scripts.RANKS
    wanted = dict.fromkeys(range(world), (steps, 0))
    return "" if ranks == wanted and run["state"] == "finished" else f"{run['state']}: {ranks}"


if __name__ == "__main__":
    sys.exit(main())
