"""Ranks by torch.multiprocessing, with ZeRO's optimizer: python spawn.py [steps] [ranks]."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel


def train(rank, world, steps, meeting):
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]))
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-3
    )
    torch.manual_seed(rank)
    for step in range(steps):
        x = torch.randn(8, 64)
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {rank} {step} {loss.item().hex()}\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    world = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(train, (world, steps, os.path.abspath(meeting)), nprocs=world)
