"""Measuring memory changes no bit and breaks no compilation: scripts under `dpwatch run`.

What is here fails below any dispatch mode: ATen computes it otherwise, or dynamo gives up.
"""

import json
import sys

import pytest

from tests import scripts

pytestmark = [pytest.mark.dist, pytest.mark.scripts]

BITS = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 12))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
channel = torch.randn(6, 4, dtype=torch.complex64)
for step in range(24):
    batch = torch.randn(64, 16)
    chances = torch.sigmoid(model(batch))
    any_of = 1 - torch.prod(1 - chances, dim=1)  # noisy-or
    masked = chances.masked_fill(batch[:, :1] > 0, 0.5).square().mean()
    target = (batch[:, 0] > 0).float()
    loss = nn.functional.binary_cross_entropy(any_of.clamp(1e-6, 1 - 1e-6), target)
    optimizer.zero_grad()
    (loss + masked).backward()
    optimizer.step()
    inverse = torch.linalg.pinv(channel)
    residual = (channel @ inverse @ channel - channel).abs().max()
    total = sum(parameter.double().sum() for parameter in model.parameters())
    print(step, loss.item().hex(), total.item().hex(), residual.item().hex(), flush=True)
"""

COMPILES = """
import torch
from torch import nn
from torch._dynamo.utils import counters

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
inputs, targets = torch.randn(32, 8), torch.randn(32, 4)
evaluate = torch.compile(
    lambda x: (model(x) - targets).square().mean(), backend="eager", fullgraph=True
)
update = optimizer.step
for step in range(6):
    loss = (model(inputs) - targets).square().mean()
    optimizer.zero_grad()
    loss.backward()
    if step == 2:  # the first compilation of this process, in the midst of a step
        with torch.no_grad():
            print("evaluated", evaluate(inputs).item().hex(), counters["stats"]["unique_graphs"])
    if step == 3:
        update = torch.compile(optimizer.step, backend="eager")
    update()
    print(step, loss.item().hex(), flush=True)
"""


def run_both(script, tmp_path, **env):
    """What it prints without the probe and with it, and the summary."""
    path, told = tmp_path / "script.py", tmp_path / "summary.json"
    path.write_text(script)
    command = [sys.executable, str(path)]
    env = scripts.environment(0, DPWATCH_RUNTIME_DIR=str(tmp_path / "rt"),
                              DPWATCH_HUB_LINGER_S="1", **env)  # fmt: skip
    plain = scripts.run(command, env)
    assert plain.returncode == 0, plain.stderr
    ours = [sys.executable, "-m", "dpwatch", "run", "--json", str(told), "--"]
    watched = scripts.run([*ours, *command], env)
    assert watched.returncode == 0, watched.stderr
    (run,) = json.loads(told.read_text())["runs"]
    return plain.stdout, watched, run


def test_results_are_the_same_to_the_last_bit(tmp_path):
    plain, watched, run = run_both(BITS, tmp_path)
    assert watched.stdout == plain
    assert run["ranks"][0]["memory"]["at_step_end"]["params"] > 0  # it did look


@pytest.mark.parametrize("memory", ["passive", "exact"])
def test_a_first_compilation_works_whenever_it_comes(memory, tmp_path):
    plain, watched, run = run_both(COMPILES, tmp_path, DPWATCH_MEMORY=memory)
    assert watched.stdout == plain
    assert ("dpwatch: memory=exact" in watched.stderr) == (memory == "exact")
    assert run["state"] == "finished"
