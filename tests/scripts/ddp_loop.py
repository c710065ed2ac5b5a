"""A plain DistributedDataParallel loop: torchrun --nproc-per-node N ddp_loop.py [steps]."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
data = TensorDataset(torch.randn(512, 64), torch.randint(0, 10, (512,)))
loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data), num_workers=1)
model = DistributedDataParallel(
    nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 10))
)
optimizer = torch.optim.Adam(model.parameters())
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)

batches = iter(loader)
for step in range(steps):
    x, y = next(batches, (None, None))
    if x is None:
        batches = iter(loader)
        x, y = next(batches)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    schedule.step()
    print(f"loss {rank} {step} {loss.item().hex()}\n", end="", flush=True)
    if step % 10 == 9:
        model.eval()
        with torch.no_grad():
            right = (model(x).argmax(1) == y).float().mean()
        model.train()
        dist.all_reduce(right)
        print(f"accuracy {rank} {step} {right.item().hex()}\n", end="", flush=True)
dist.destroy_process_group()
