"""Training plain, under dpwatch and under TraceML: separate processes in turn, CPU per step.

    python -m tests.bench.peer [--rounds N] [--seconds S] [--only 1x1] [--json FILE]

Each round runs `peer_train.py` once under each variant, in an order that rotates. A case is
MILLISECONDSxRANKS. The script's own clocks give CPU and wall time per step, for the first seconds
after its first step and for the rest (steady). A run's other processes (launcher, hub, aggregator)
are sampled from /proc. Variants are compared within a round, so that the machine's drift falls on
both; printed are the median (least … most) over the rounds, and the ratio of the least ones.

`make bench-peer` installs TraceML into an environment of its own; without it the other two run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
TRACEML = FOLDER.parents[1] / ".bench-peer" / "bin" / "traceml"
CASES = ("1x1", "20x1", "1x2", "20x2")
SAMPLE_S = 0.25
LIMIT_S = 180
ENDING_S = 10
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
PR_SET_CHILD_SUBREAPER = 36

COLUMNS = ["plain", "dpwatch", "dpwatch/plain", "traceml", "traceml/plain"]
PER_STEP = {
    "thread_us": "CPU per step, training thread",
    "process_us": "CPU per step, a rank's process",
    "all_us": "CPU per step, all processes, per rank",
    "wall_us": "wall time per step",
}
ROWS = {
    **{
        f"{key}.{phase}": f"{text}, {phase}, µs"
        for key, text in PER_STEP.items()
        for phase in ("first", "steady")
    },
    "start_s": "to the end of the first step, s",
    "end_s": "from the last step to the command's end, s",
    "rank_mb": "peak resident memory of a rank, MB",
    "threads_percent_first": "a rank's other threads, first, % of a core",
    "threads_percent_steady": "a rank's other threads, steady, % of a core",
    "extra": "other processes",
    "extra_mb": "their resident memory, MB",
    "extra_cpu_s": "their CPU until the last step, s",
    "extra_percent_first": "their CPU, first, % of a core",
    "extra_percent_steady": "their CPU, steady, % of a core",
}

Figures = dict[str, float]


class Steps(NamedTuple):
    """What a rank's script wrote: clocks at each step's end."""

    pid: int
    peak_kib: int
    ended_ns: Sequence[int]
    process_ns: Sequence[int]
    thread_ns: Sequence[int]


class Sample(NamedTuple):
    """Every process of a run at one moment: CPU seconds so far, and resident megabytes."""

    at_ns: int
    cpu_s: Mapping[int, float]
    mb: Mapping[int, float]


def main(arguments: list[str] | None = None) -> None:
    """Runs the cases, prints a table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="of each case (default 12)")
    parser.add_argument("--seconds", type=float, default=14.0, help="of training in each run")
    parser.add_argument(
        "--first", type=float, default=10.0, help="seconds of a run before steady state"
    )
    parser.add_argument("--only", choices=CASES, action="append", help="run this case (repeatable)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures, keeping its other cases"
    )
    options = parser.parse_args(arguments)
    if not TRACEML.exists():
        print(f"TraceML is left out: {TRACEML} is missing (make bench-peer installs it)")
    # Detached processes of a run become children of this one, and are found as such.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        **versions(),
        "seconds": options.seconds,
        "first_s": options.first,
    }
    for case in options.only or CASES:
        rounds: list[dict[str, Figures]] = []
        for number in range(options.rounds):
            rounds.append(a_round(case, number, options.seconds, options.first))
            if options.json:  # after each, so that an interrupted run leaves what it has
                kept = json.loads(options.json.read_text()) if options.json.exists() else {}
                kept[case] = {**about, "compared": compared(rounds), "rounds": rounds}
                options.json.write_text(json.dumps(kept) + "\n")
        step, ranks = case.split("x")
        print(f"\n{step} ms, {ranks} rank(s), {len(rounds)} rounds")
        print("\n".join(table(compared(rounds))), flush=True)


def a_round(case: str, number: int, seconds: float, first_s: float) -> dict[str, Figures]:
    """One run of each variant that there is."""
    names = ["plain", "dpwatch", "traceml"] if TRACEML.exists() else ["plain", "dpwatch"]
    order = names[number % len(names) :] + names[: number % len(names)]
    found = {}
    for name in order:
        with tempfile.TemporaryDirectory(prefix="dpwpeer") as folder:
            try:
                found[name] = a_run(name, case, Path(folder), seconds, first_s)
            except RuntimeError as error:
                print(f"{case}, round {number + 1}, {name}: {error}", flush=True)
    return found


def command(variant: str, case: str, folder: Path, seconds: float) -> list[str]:
    """What a user would type, with defaults."""
    step, _, ranks = case.partition("x")
    words = [str(folder), "--step", step, "--seconds", f"{seconds:g}"]
    if variant == "traceml":
        script = str(FOLDER / "peer_train_traceml.py")
        return [str(TRACEML), "run", script, "--nproc-per-node", ranks, "--args", *words]
    launcher = [sys.executable]
    if ranks != "1":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    training = [*launcher, str(FOLDER / "peer_train.py"), *words]
    if variant == "plain":
        return training
    return [sys.executable, "-m", "dpwatch", "run", "--", *training]


def a_run(variant: str, case: str, folder: Path, seconds: float, first_s: float) -> Figures:
    """Runs the script under a variant, and leaves no process."""
    log = folder / "log"
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("DPWATCH")},
        "OMP_NUM_THREADS": "1",
        "DPWATCH_RUNTIME_DIR": str(folder / "rt"),
        "DPWATCH_HUB_LINGER_S": "1",
    }
    samples = []
    began_ns = ended_ns = time.monotonic_ns()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(variant, case, folder, seconds),
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        while process.poll() is None:
            if ended_ns - began_ns > (seconds + LIMIT_S) * 1e9:
                raise RuntimeError(f"not over after {seconds + LIMIT_S:.0f} s")
            samples.append(sample())
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
            ended_ns = time.monotonic_ns()
    finally:
        end_all(0 if process.poll() is None else ENDING_S)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {log.read_text()[-500:]}")
    ranks = [Steps(**json.loads(path.read_text())) for path in folder.glob("rank*.json")]
    if len(ranks) != int(case.partition("x")[2]):
        raise RuntimeError(f"figures of {len(ranks)} ranks: {log.read_text()[-500:]}")
    return figures(ranks, samples, began_ns, ended_ns, first_s)


def descendants() -> Iterator[tuple[int, list[str]]]:
    """Pid and fields of /proc/PID/stat (from the state on) of this process's descendants."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
    mine = {os.getpid()}
    while new := {pid for pid in found.keys() - mine if int(found[pid][1]) in mine}:
        mine |= new
    return ((pid, found[pid]) for pid in mine - {os.getpid()})


def sample() -> Sample:
    """What the run's processes have used so far."""
    at_ns, rows = time.monotonic_ns(), dict(descendants())
    return Sample(
        at_ns,
        {pid: (int(row[11]) + int(row[12])) * TICK_S for pid, row in rows.items()},
        {pid: int(row[21]) * PAGE_MB for pid, row in rows.items() if row[0] != "Z"},
    )


def end_all(grace_s: float) -> None:
    """Waits for what still runs, such as a hub that lingers, and kills what takes longer."""
    until = time.monotonic() + grace_s
    while children := [pid for pid, _ in descendants()]:
        if time.monotonic() > until:
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def figures(
    ranks: Sequence[Steps],
    samples: Sequence[Sample],
    began_ns: int,
    ended_ns: int,
    first_s: float,
) -> Figures:
    """A run in figures; those of ranks are means over the ranks."""
    own = {rank.pid for rank in ranks}
    others = other_cpu_s(samples, own)
    last_ns = max(rank.ended_ns[-1] for rank in ranks)
    at_ns = [each.at_ns for each in samples]
    memory = [each.mb.keys() - own for each in samples]
    found = {
        "start_s": (max(rank.ended_ns[0] for rank in ranks) - began_ns) / 1e9,
        "end_s": (ended_ns - last_ns) / 1e9,
        "rank_mb": statistics.fmean(rank.peak_kib for rank in ranks) * 1024 / 1e6,
        "extra": float(max(map(len, memory))),
        "extra_mb": max(
            sum(each.mb[pid] for pid in pids) for each, pids in zip(samples, memory, strict=True)
        ),
        "extra_cpu_s": float(np.interp(last_ns, at_ns, others)),
    }
    for name, (low, high) in phases(ranks[0].ended_ns, first_s).items():
        count = high - low
        for clock in ("ended_ns", "process_ns", "thread_ns"):
            passed = [getattr(rank, clock)[high] - getattr(rank, clock)[low] for rank in ranks]
            key = "wall_us" if clock == "ended_ns" else clock.replace("_ns", "_us")
            found[f"{key}.{name}"] = statistics.fmean(passed) / 1e3 / count
        wall_us, thread_us, process_us = (
            found[f"{clock}_us.{name}"] for clock in ("wall", "thread", "process")
        )
        bounds = np.interp([ranks[0].ended_ns[i] for i in (low, high)], at_ns, others)
        others_us = float(bounds[1] - bounds[0]) * 1e6 / count
        found[f"all_us.{name}"] = process_us + others_us / len(ranks)
        found[f"threads_percent_{name}"] = 100 * (process_us - thread_us) / wall_us
        found[f"extra_percent_{name}"] = 100 * others_us / wall_us
    return {key: round(value, 4) for key, value in found.items()}


def phases(ended_ns: Sequence[int], first_s: float) -> dict[str, tuple[int, int]]:
    """The first and the last of each phase's steps' ends: what lies between counts.

    The first step belongs to no phase, since it includes what torch sets up.
    """
    cut = int(np.searchsorted(ended_ns, ended_ns[0] + first_s * 1e9))
    last = len(ended_ns) - 1
    whole = {"first": (0, min(cut, last)), "steady": (cut, last)}
    return {name: bounds for name, bounds in whole.items() if bounds[1] > bounds[0]}


def other_cpu_s(samples: Sequence[Sample], own: set[int]) -> list[float]:
    """CPU at each sample of all processes so far but these, those that have ended included."""
    known: dict[int, float] = {}
    sums = []
    for each in samples:
        known.update({pid: cpu for pid, cpu in each.cpu_s.items() if pid not in own})
        sums.append(sum(known.values()))
    return sums


def compared(rounds: Sequence[Mapping[str, Figures]]) -> dict[str, dict[str, list[float]]]:
    """By variant and figure: median, least and most over the rounds.

    `VARIANT/plain` holds what the variant adds in a round, or, for figures per step, their ratio,
    and then also the ratio of each one's least: other work on the machine only ever adds CPU.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for variant in dict.fromkeys(name for each in rounds for name in each):
        found[variant] = spreads(each[variant] for each in rounds if variant in each)
        if variant != "plain":
            pairs = (each for each in rounds if variant in each and "plain" in each)
            found[f"{variant}/plain"] = spreads(
                against(each[variant], each["plain"]) for each in pairs
            )
            for key in filter(per_step, found[f"{variant}/plain"]):
                ratio = found[variant][key][1] / found["plain"][key][1]
                found[f"{variant}/plain"][key].append(round(ratio, 4))
    return found


def against(ours: Figures, plain: Figures) -> Figures:
    return {
        key: value / plain[key] if per_step(key) else value - plain[key]
        for key, value in ours.items()
        if key in plain
    }


def per_step(key: str) -> bool:
    return "." in key


def spreads(runs: Iterable[Figures]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for run in runs:
        for key, value in run.items():
            columns.setdefault(key, []).append(value)
    return {
        key: [round(each, 4) for each in (statistics.median(values), min(values), max(values))]
        for key, values in columns.items()
    }


def table(found: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    """As Markdown: a row a figure, a column a variant."""
    names = sorted(found, key=COLUMNS.index)
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for key, text in ROWS.items():
        cells = [cell(found[name].get(key), key, "/" in name) for name in names]
        yield f"| {text} | " + " | ".join(cells) + " |"


def cell(spread: list[float] | None, key: str, relative: bool) -> str:
    """Median, least and most."""
    if spread is None:
        return "–"
    digits = 2 if key.endswith("_s") or "percent" in key or (relative and per_step(key)) else 0
    plus = "+" if relative and not per_step(key) else ""
    mid, low, high, *least = (f"{each:{plus}.{digits}f}" for each in spread)
    return f"×{mid} ({low} … {high}), least ×{least[0]}" if least else f"{mid} ({low} … {high})"


def versions() -> dict[str, str]:
    """Of what is compared."""
    found = {}
    pythons = {"dpwatch": Path(sys.executable), "traceml-ai": TRACEML.with_name("python")}
    for package, python in pythons.items():
        if python.exists():
            code = (
                f"import importlib.metadata as m; print(m.version({package!r}), m.version('torch'))"
            )
            told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            found[package] = told.stdout.strip().replace(" ", ", torch ")
    return found


if __name__ == "__main__":
    main()
