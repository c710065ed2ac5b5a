"""One process of the `ops` part: with a probe or without, it runs cases and tells their digests.

    python -m tests.harmless.op_worker {plain,probed} {digests,details} PLACES < NAMES > LINES

Each line of output is a JSON object: `{"begins": name}`, then `{"name": …, "sampled": […],
"unsampled": […]}` with one digest a sample, or in detail each sample's description.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import torch

from tests.harmless import describe
from tests.harmless.op_cases import Case, all_cases, outcome
from tests.harmless.step_kinds import KINDS, Body, ProbeFailed, Surroundings


def main() -> None:
    """Runs the cases that standard input names."""
    probed, detailed = sys.argv[1] == "probed", sys.argv[2] == "details"
    names = set(sys.stdin.read().split("\n"))
    elsewhere = _holes(int(sys.argv[3]))
    torch.set_num_threads(1)
    torch.set_warn_always(True)
    out, sys.stdout = sys.stdout, sys.stderr  # operators may print
    for case in all_cases():
        if case.name not in names:
            continue
        print(json.dumps({"begins": case.name}), file=out, flush=True)
        print(json.dumps(_run(case, probed=probed, detailed=detailed)), file=out, flush=True)
    del elsewhere


def _holes(places: int) -> list[bytearray]:
    """Blocks with holes between them, so that what comes lies at other places; none for 0."""
    draw = random.Random(places)
    blocks = [bytearray(draw.randrange(1, 2000)) for _ in range(20_000 if places else 0)]
    return draw.sample(blocks, len(blocks) // 2)


def _run(case: Case, *, probed: bool, detailed: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": case.name}
    for kind in KINDS:
        samples = case.samples()

        def work(body: Body, samples: list[Any] = samples) -> list[Any]:
            return [outcome(sample, body, number) for number, sample in enumerate(samples)]

        surroundings = Surroundings(probed=probed)
        try:
            outcomes = surroundings.run(kind, work)
        except ProbeFailed as error:
            told[kind], told["failed"] = [], str(error)
            continue
        if kind == "sampled":
            told["memory_sampled"] = surroundings.memory_sampled
        described = [describe.lines(o, detailed=detailed) for o in outcomes]
        if not case.bits:
            described = [_without_bits(lines) for lines in described]
        told[kind] = described if detailed else [describe.digest(lines) for lines in described]
    return told


def _without_bits(lines: list[str]) -> list[str]:
    return [line.partition(" bits=")[0] for line in lines]


if __name__ == "__main__":
    main()
