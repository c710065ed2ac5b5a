"""Runs a script as `__main__`, with `dpwatch.watch()` before it or without.

    python watched.py {watch,plain} REPORT SCRIPT ARGUMENTS…

How many steps were seen is written to REPORT when the process ends.
"""

import atexit
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Becomes the script that it is given."""
    _, how, report, script, *arguments = sys.argv
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    import torch  # noqa: F401 - in both cases, so that the two differ in the probe alone

    if how == "watch":
        import dpwatch

        probe = dpwatch.watch()
        atexit.register(lambda: Path(report).write_text(str(probe.steps.step)))
    else:
        atexit.register(int)
    runpy.run_path(script, run_name="__main__")


main()
