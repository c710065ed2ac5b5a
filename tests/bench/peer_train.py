"""The script that `peer` runs: plain PyTorch with the same work in every step, and its own clocks.

    python peer_train.py FOLDER [--step 1|20] [--seconds S]

Under torchrun it is a rank of DistributedDataParallel over gloo. At the end each rank writes
`FOLDER/rankN.json`: its pid, peak resident memory, and at the end of each step the monotonic clock
and the CPU time of the process and of the training thread so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SHAPES = {"1": (96, 3, 64), "20": (512, 6, 112)}
"""By milliseconds that a step takes, about: width, depth and batch."""
BATCHES = 50

Around = Callable[[nn.Module], contextlib.AbstractContextManager[object]]


def main(around: Around = contextlib.nullcontext) -> None:
    """Trains; each forward, backward and optimizer step happens inside `around(model)`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", choices=SHAPES, default="1")
    parser.add_argument("--seconds", type=float, default=14.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, depth, batch = SHAPES[options.step]
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)]
    model: nn.Module = nn.Sequential(*layers, nn.Linear(width, 10))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    data = TensorDataset(
        torch.randn(batch * BATCHES, width), torch.randint(0, 10, (batch * BATCHES,))
    )
    loader = DataLoader(data, batch, shuffle=False)
    optimizer = torch.optim.Adam(model.parameters())
    criterion = nn.CrossEntropyLoss()
    clocks = (time.monotonic_ns, time.process_time_ns, time.thread_time_ns)
    columns = [array("q") for _ in clocks]
    while True:
        for inputs, targets in loader:
            with around(model):
                optimizer.zero_grad()
                criterion(model(inputs), targets).backward()
                optimizer.step()
            for column, clock in zip(columns, clocks, strict=True):
                column.append(clock())
        if over(columns[0], options.seconds, ranks):
            break
    peak = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    told = dict(zip(("ended_ns", "process_ns", "thread_ns"), map(list, columns), strict=True))
    (options.folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(
        json.dumps({"pid": os.getpid(), "peak_kib": int(peak[0]), **told})
    )
    if ranks > 1:
        dist.destroy_process_group()


def over(ended_ns: array[int], seconds: float, ranks: int) -> bool:
    """Whether any rank has trained for that long since its first step."""
    done = torch.tensor(float(ended_ns[-1] - ended_ns[0] >= seconds * 1e9))
    if ranks > 1:
        dist.all_reduce(done, dist.ReduceOp.MAX)
    return bool(done)


if __name__ == "__main__":
    main()
