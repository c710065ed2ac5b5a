"""DDP over gloo until somebody says stop: knows nothing of dpwatch.

Takes the file that says so, and how long a step sleeps in milliseconds. Tells its steps at the end.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

stop, pause_ms = Path(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(0)
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(64, 256))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
flag = torch.zeros(1, dtype=torch.int32)
steps = 0
while not flag.item():
    time.sleep(pause_ms / 1e3)
    loss = model(torch.randn(8, 64)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    steps += 1
    flag[0] = int(stop.exists())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
print(f"rank {dist.get_rank()} did {steps} steps", flush=True)
dist.destroy_process_group()
