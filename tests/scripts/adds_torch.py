"""What torch adds to a script's own collectives: torchrun --nproc-per-node 2 adds_torch.py PLACE.

One part after the other, each with a model of its own. What pickled objects come to is counted here
at torch.distributed's Python functions, and printed.
"""

import json
import sys
from collections import Counter

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

PLACE = sys.argv[1]
STEPS, UNEVEN, MORE = 4, 3, 2
part, counted = "", Counter()


class Partly(nn.Module):
    """Has buffers, and parameters that forward does not use."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.unused = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def train(model, optimizer, steps, clip=None):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        if clip is not None:
            clip()
        optimizer.step()


# Compiled as what is generated, so that the line that issues the collective stays torch's.
COUNTING = """
def counting(original, count):
    def function(*args, **kwargs):
        count(*args, **kwargs)
        return original(*args, **kwargs)
    return function
"""
made = {}
exec(compile(COUNTING, "<counting>", "exec"), made)


def counts(name, payload):
    """Adds up bytes of pickled objects that this rank hands in."""

    def count(*args, **kwargs):
        handed_in = payload(*args, **kwargs)
        for tensor in handed_in if isinstance(handed_in, list) else [handed_in]:
            if tensor is not None and tensor.dtype == torch.uint8:
                counted[f"{part} {name}"] += tensor.nbytes

    function = made["counting"](getattr(c10d, name), count)
    setattr(c10d, name, function)
    setattr(dist, name, function)


counts("broadcast", lambda tensor, *_, **__: tensor)
counts("gather", lambda tensor, *_, **__: tensor)
counts("scatter", lambda tensor, scatter_list=None, *_, **__: scatter_list)
counts("all_gather", lambda tensors, tensor, *_, **__: tensor)

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)

model = DistributedDataParallel(Partly(), find_unused_parameters=True)
train(model, torch.optim.SGD(model.parameters(), lr=0.1), STEPS)

model = DistributedDataParallel(nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with model.join():
    train(model, optimizer, UNEVEN + MORE * rank)

part = "zero"
optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam)
train(model, optimizer, STEPS)
optimizer.consolidate_state_dict()

sharded = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
fully_shard(sharded)
optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
clip = torch.nn.utils.clip_grad_norm_
train(sharded, optimizer, STEPS, lambda: clip(sharded.parameters(), 1.0))

flat = FullyShardedDataParallel(nn.Linear(8, 8), device_id=torch.device("cpu"))
train(flat, torch.optim.SGD(flat.parameters(), lr=0.1), STEPS, lambda: flat.clip_grad_norm_(1.0))

part = "save"
states = {"model": get_model_state_dict(sharded)}
dcp.save(states, checkpoint_id=PLACE)
part = "load"
dcp.load(states, checkpoint_id=PLACE)
part = "full"
get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
if rank == 0:
    print(json.dumps(counted))
dist.destroy_process_group()
