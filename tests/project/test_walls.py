"""The import walls, seen in a fresh interpreter: what a package really brings with it."""

import graphlib
import subprocess
import sys

import grimp
import pytest

VIEWER = [
    "dpwatch",
    "dpwatch.cli",
    "dpwatch.cli.parser",
    "dpwatch.cli.output",
    "dpwatch.cli.doctor",
    "dpwatch.cli.checks.training",
    "dpwatch.cli.checks.runs",
    "dpwatch.viewer.watcher",
    "dpwatch.plan.traffic",
    "dpwatch.tui.app",
    "dpwatch.demo.session",
    "dpwatch.trainer.config",
    "dpwatch.trainer.launch",
]
HEAVY = {"torch", "numpy"}
SCREEN = {
    "textual", "rich", "dpwatch.run", "dpwatch.hub", "dpwatch.viewer", "dpwatch.tui", "dpwatch.cli",
}  # fmt: skip


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
    assert not brought & {"textual", "rich", "asyncio", "dpwatch.tui", "dpwatch.viewer"}


def test_no_modules_import_each_other_in_a_circle_not_even_for_types():
    graph = grimp.build_graph("dpwatch", exclude_type_checking_imports=False, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()
