"""torch.compile sees nothing of the probe."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpwatch.probe import dynamo
from dpwatch.probe.steps import lanes
from dpwatch.probe.steps import torch_hooks as hooks

SCRIPT = Path(__file__).parent / "compiled" / "optimizer.py"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "record_function" not in line]


@pytest.mark.slow
def test_compilation_is_unchanged_in_count_and_results():
    plain, told = run()
    watched, also_told = run("watched")
    # One frame that only calls hooks is compiled where there are any, and found empty where not.
    frames, frames_watched = (int(re.search(r"frames (\d+)", out)[1]) for out in (plain, watched))
    assert frames_watched in (frames, frames - 1)
    assert watched.replace(f"frames {frames_watched} ", f"frames {frames} ") == plain
    assert told == []
    # The compiled steps run no hooks: that parameters change shows where they end.
    assert also_told == ["steps 40"]


def test_dynamos_remembered_module_call_is_restored(monkeypatch):
    module = type(sys)("torch._dynamo.utils")
    before = torch.nn.Module.__call__
    module.unpatched_nn_module_call = before
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", module)
    monkeypatch.delitem(sys.modules, "torch._dynamo.variables.nn_module", raising=False)
    with contextlib.closing(hooks.Hooks(lambda: None, lambda error: None)):
        assert module.unpatched_nn_module_call is torch.nn.Module.__call__ is not before
    assert module.unpatched_nn_module_call is torch.nn.Module.__call__ is before


def test_a_torch_without_skip_marks_works(monkeypatch):
    monkeypatch.setattr(torch._C, "_dynamo", object())
    dynamo.leave_alone(run)
    dynamo.leave_modules_alone(lanes)
