"""A DistributedDataParallel loop with a fault: torchrun … faulty.py FAULT [name=value …].

Faults that delay a rank by `ms` in each of its steps: dataset, forward, backward, host, optimizer.
Faults that stop it in step `at` until the file `free` exists: sleep, spin, stop, deadlock, swallow.
Faults of what it calls from step `at` on: other, skip, shape. Faults that end it there: kill, exit,
error. And nan: its loss is no number from there on; leak: it keeps 1 MiB more each step.
`pace` is the least that a step of any rank takes, in ms.
"""

import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

fault = sys.argv[1]
told = dict(word.split("=", 1) for word in sys.argv[2:])
steps, at, every = (int(told.get(k, v)) for k, v in (("steps", 40), ("at", 6), ("every", 1)))
ms, width = float(told.get("ms", 50)), int(told.get("width", 64))
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
guilty = rank == int(told.get("rank", 1))
step = 0


def delay(kind):
    if guilty and fault == kind and step >= at and step % every == 0:
        time.sleep(ms / 1e3)


class Batches(Dataset):
    """An item is a whole batch."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        delay("dataset")
        generator = torch.Generator().manual_seed(index)
        return torch.randn(8, width, generator=generator), torch.arange(8) % 10


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        delay("forward")
        y = self.layers(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: delay("backward"))
        return y


class Adam(torch.optim.Adam):
    def step(self, closure=None):
        delay("optimizer")
        return super().step(closure)


def stuck():
    """What a rank does that is to be found out."""
    freed = told["free"]
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        threading.Thread(target=lambda: wait(freed, lock.release), daemon=True).start()
        lock.acquire()
    elif fault == "spin":
        while not os.path.exists(freed):
            pass
    elif fault in ("sleep", "swallow"):
        try:
            if fault == "swallow":
                raise ValueError("a bad sample")
        except ValueError:
            pass
        while not os.path.exists(freed):
            time.sleep(0.2)


def wait(path, then):
    while not os.path.exists(path):
        time.sleep(0.1)
    then()


def astray():
    """What a rank calls that the others don't."""
    extra = torch.ones(5 if fault == "shape" and guilty else 3)
    if fault == "other" and guilty:
        dist.broadcast(extra, src=rank)
    elif not (fault == "skip" and guilty):
        dist.all_reduce(extra)


torch.manual_seed(0)
data = Batches()
loader = DataLoader(data, batch_size=None, sampler=DistributedSampler(data))
model = DistributedDataParallel(Slow())
optimizer = Adam(model.parameters())
batches = iter(loader)
kept = []
for step in range(steps):
    x, y = next(batches, (None, None))
    if x is None:
        batches = iter(loader)
        x, y = next(batches)
    delay("host")
    time.sleep(float(told.get("pace", 0)) / 1e3)
    if guilty and step == at:
        if "free" in told:
            print(f"stuck {os.getpid()} {time.monotonic_ns()}", flush=True)
            stuck()
        elif fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "exit":
            os._exit(3)
        elif fault == "error":
            raise ValueError("a bad sample")
    if fault in ("other", "skip", "shape"):
        if step >= at:
            astray()
        else:
            dist.all_reduce(torch.ones(3))
    loss = nn.functional.cross_entropy(model(x), y)
    if fault == "nan" and guilty and step >= at:
        loss = loss * float("nan")
    if fault == "leak" and guilty:
        kept.append(torch.ones(1 << 18))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
dist.barrier()
dist.destroy_process_group()
