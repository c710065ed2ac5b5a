"""`python -m tests.harmless`: see the package."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from tests.harmless.rows import Report

PARTS = ("ops", "zoo", "long")


def main() -> int:
    """Runs what is asked for. Returns: 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.harmless", description=__doc__)
    parser.add_argument("rows", nargs="*", help="ops, zoo, long, or rows such as ops/prod/float32")
    parser.add_argument("--quick", action="store_true", help="the part that CI runs")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), metavar="N")
    parser.add_argument("--verbose", action="store_true", help="print every row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows to FILE")
    options = parser.parse_args()
    unknown = [row for row in options.rows if row.partition("/")[0] not in PARTS]
    if unknown:
        parser.error(f"no such row: {unknown[0]}; they begin with {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    began = time.monotonic()
    report = Report(verbose=options.verbose)
    for part in PARTS:
        if not options.rows or any(row.partition("/")[0] == part for row in options.rows):
            _run(part, report, options)
    report.print_counts()
    print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        report.write(options.json)
    return int(report.failed)


def _run(part: str, report: Report, options: argparse.Namespace) -> None:
    if part == "ops":
        from tests.harmless import ops

        ops.run(report, options.rows, quick=options.quick, jobs=options.jobs)
    elif part == "zoo":
        from tests.harmless import zoo

        zoo.run(report, options.rows, quick=options.quick, jobs=options.jobs)
    else:
        from tests.harmless import endurance

        endurance.run(report, options.rows, quick=options.quick, jobs=options.jobs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
