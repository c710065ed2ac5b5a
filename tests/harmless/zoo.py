"""The `zoo` part: runs each shape of script without the probe and with it, and compares."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.harmless import script_run
from tests.harmless.parallel import in_order
from tests.harmless.rows import (
    BROKEN,
    DIFFERS,
    NOT_RUN,
    NOTICED,
    SAME,
    VARIES,
    Report,
    Row,
    shortened,
    wanted,
)
from tests.harmless.script_run import NOT_RUN_CODE, Outcome
from tests.harmless.shape import Shape, all_shapes
from tests.scripts import ABORTED, MOST_ABORTED

MOST_OF_A_STREAM = 6
MOST_LINES = 16

QUICK = frozenset({
    "plain", "noisy_or", "functorch_grad", "compile_first/eager-2", "own_dispatch_mode",
    "pickling", "signatures", "double_backward/watch", "uncaught/plain", "caught_inside", "fork",
    "exit_codes/3", "interactive", "ddp",
})  # fmt: skip
"""Shapes that CI runs: one of each kind of thing that a script may notice."""


def run(report: Report, patterns: Sequence[str], *, quick: bool, jobs: int) -> None:
    """Compares all shapes that are wanted, and adds a row for each, in order."""
    shapes = [shape for shape in all_shapes() if wanted(f"zoo/{shape.name}", patterns)]
    if quick:
        shapes = [shape for shape in shapes if shape.name in QUICK]
    for row in in_order(compare, shapes, jobs):
        report.add(row)


def compare(shape: Shape) -> Row:
    """Runs a shape without the probe and with it."""
    name = f"zoo/{shape.name}"
    if missing := shape.missing():
        return Row(name=name, verdict=NOT_RUN, note=missing)
    place = Path(tempfile.mkdtemp(prefix="dpw-"))  # short, since sockets lie below it
    try:
        plain = _run(shape, place, probed=False)
        if plain.code == NOT_RUN_CODE:
            return Row(name=name, verdict=NOT_RUN, note=plain.err[-1])
        if plain.code != shape.exit_code:
            detail = shortened([f"exit code {plain.code}", *plain.err[-6:]], MOST_LINES)
            return Row(name=name, verdict=BROKEN, note="without the probe", detail=detail)
        probed = _run(shape, place, probed=True)
        found = list(_differences(shape, plain, probed))
        if found:
            again = _run(shape, place, probed=False)
            if own := list(_differences(shape, plain, again)):
                note = "differs without the probe too"
                return Row(name=name, verdict=VARIES, note=note, detail=shortened(own, MOST_LINES))
    finally:
        script_run.wait_for_end_of_hubs(place)
        shutil.rmtree(place, ignore_errors=True)
    if found and shape.noticed:
        detail = shortened(found, MOST_LINES)
        return Row(name=name, verdict=NOTICED, note=shape.noticed, detail=detail)
    note = f"{len(plain.out)} lines, exit {plain.code}, {_seen(probed)}"
    verdict = DIFFERS if found else SAME
    return Row(name=name, verdict=verdict, note=note, detail=shortened(found, MOST_LINES))


def _run(shape: Shape, place: Path, *, probed: bool) -> Outcome:
    """A run that torch itself did not abort at its end, as it may with and without the probe."""
    for _ in range(MOST_ABORTED):
        outcome = script_run.run(shape, place, probed=probed)
        if ABORTED not in outcome.err:
            break
    return outcome


def _seen(probed: Outcome) -> str:
    """What dpwatch saw: a script of which it sees nothing proves little."""
    seen = "no steps seen" if not probed.steps else f"{probed.steps} steps seen"
    return "; ".join([seen, *probed.said])


def _differences(shape: Shape, plain: Outcome, probed: Outcome) -> Iterator[str]:
    if plain.code != probed.code:
        yield f"exit code: {plain.code} without, {probed.code} with"
    if not shape.ignores_stderr:
        yield from _stream("stderr", plain.err, probed.err, shape, ends=True)
    yield from _stream("stdout", plain.out, probed.out, shape)
    for path in sorted(plain.files.keys() | probed.files.keys()):
        if plain.files.get(path) != probed.files.get(path):
            yield f"file {path}: {plain.files.get(path)} without, {probed.files.get(path)} with"


def _stream(
    name: str, without: list[str], with_it: list[str], shape: Shape, *, ends: bool = False
) -> Iterator[str]:
    """What differs in a stream: its beginning, or its end, where a traceback says what it is."""
    if shape.any_order:
        without, with_it = sorted(without), sorted(with_it)
    if without == with_it:
        return
    diff = difflib.unified_diff(without, with_it, "without", "with", lineterm="", n=0)
    found = [line for line in diff if not line.startswith(("---", "+++", "@@"))]
    yield f"{name}: {len(found)} lines differ"
    yield from shortened(found[-MOST_OF_A_STREAM:] if ends else found, MOST_OF_A_STREAM)
