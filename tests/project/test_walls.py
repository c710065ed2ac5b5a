"""The import walls, seen in a fresh interpreter: what a package really brings with it."""

import subprocess
import sys

import pytest

VIEWER = [
    "dpwatch",
    "dpwatch.cli",
    "dpwatch.cli.parser",
    "dpwatch.cli.output",
    "dpwatch.cli.doctor",
    "dpwatch.cli.checks.training",
    "dpwatch.cli.checks.runs",
    "dpwatch.hub.server",
    "dpwatch.viewer.follow",
    "dpwatch.plan.traffic",
    "dpwatch.tui.app",
    "dpwatch.demo.session",
    "dpwatch.trainer.config",
    "dpwatch.trainer.launch",
]
HEAVY = {"torch", "numpy"}
SCREEN = {"textual", "rich", "dpwatch.hub", "dpwatch.tui", "dpwatch.cli"}


def modules_after(statement):
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", VIEWER)
def test_the_viewers_side_brings_no_torch(name):
    assert not modules_after(f"import {name}") & HEAVY


def test_the_probe_brings_no_screen():
    assert not modules_after("import dpwatch; dpwatch.watch().close()") & SCREEN


def test_the_hub_process_is_light():
    brought = modules_after("import dpwatch.hub.server")
    assert not brought & {"textual", "rich", "asyncio", "dpwatch.tui"}
