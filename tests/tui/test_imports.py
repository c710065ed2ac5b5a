"""The dashboard starts on a machine without torch."""

from __future__ import annotations

import subprocess
import sys


def test_the_dashboard_imports_neither_torch_nor_numpy():
    code = (
        "import sys, dpwatch.tui.app; "
        "print([m for m in ('torch', 'numpy', 'dpwatch.probe', 'zmq') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
