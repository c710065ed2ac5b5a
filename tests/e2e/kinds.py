"""Training scripts with one kind of trouble each: torchrun … kinds.py KIND. None knows of dpwatch.

Collectives time out after TIMEOUT_S, so that each ends by itself.
"""

import datetime
import gc
import os
import random
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

TIMEOUT_S = 15
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
world = int(os.environ["WORLD_SIZE"])


def join(size=world):
    timeout = datetime.timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timeout)
    torch.manual_seed(rank)


class Net(nn.Module):
    """Forward takes `pace` seconds, or goes by the batch's length; some batches are too large."""

    def __init__(self, pace=0.05, *, norm=False, outputs=8):
        super().__init__()
        self.pace = pace
        middle = nn.BatchNorm1d(64) if norm else nn.ReLU()
        self.layers = nn.Sequential(nn.Linear(32, 64), middle, nn.Linear(64, outputs))

    def forward(self, x):
        time.sleep(0.001 * x.shape[1] if x.dim() == 3 else self.pace)
        if len(x) > 64:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 9.00 GiB")
        return self.layers(x)


def trained(net, group=None):
    model = DistributedDataParallel(net, process_group=group)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def step(model, optimizer, x):
    optimizer.zero_grad()
    out = model(x)
    out.square().mean().backward()
    optimizer.step()
    return out


def stops_early():
    """Rank 1 decides by a figure of its own to stop."""
    join()
    model, optimizer = trained(Net())
    for i in range(40):
        step(model, optimizer, torch.randn(16, 32))
        if rank == 1 and i == 17:
            break


def fewer_batches():
    """Rank 2 has fewer batches, and goes on to the barrier at the epoch's end."""
    join()
    model, optimizer = trained(Net())
    for _ in range(20 if rank == 2 else 24):
        step(model, optimizer, torch.randn(16, 32))
    dist.barrier()


def skips_batch():
    """Rank 1 catches that it is out of memory, and goes on with the next batch."""
    join()
    model, optimizer = trained(Net())
    for i in range(60):
        x = torch.randn(99 if rank == 1 and i == 12 else 16, 32)
        try:
            step(model, optimizer, x)
        except torch.OutOfMemoryError:
            continue


def validates_alone():
    """Rank 0 alone validates through the wrapper, which broadcasts buffers."""
    join()
    model, optimizer = trained(Net(norm=True))
    for _ in range(2):
        for _ in range(15):
            step(model, optimizer, torch.randn(16, 32))
        if rank == 0:
            with torch.no_grad():
                for _ in range(5):
                    model(torch.randn(16, 32))
        dist.barrier()


def wrong_world():
    """The script asks for one rank more than the launcher starts."""
    join(world + 1)


def members_only():
    """Each rank makes only the group that it is in."""
    join()
    # Else it has a time-out of its own, half an hour, in which the ranks may wait for each other.
    timeout = datetime.timedelta(seconds=TIMEOUT_S)
    group = dist.new_group([0, 3] if rank in (0, 3) else [1, 2], timeout=timeout)
    model, optimizer = trained(Net(), group)
    for _ in range(20):
        step(model, optimizer, torch.randn(16, 32))


held = threading.Lock()
held.acquire()


class Pictures(Dataset):
    """One of rank 1's is never read: its worker waits for a lock, or is killed."""

    def __init__(self, trouble):
        self.trouble = trouble

    def __len__(self):
        return 400

    def __getitem__(self, index):
        if rank == 1 and index == 15 * 8:
            if self.trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            held.acquire(timeout=4 * TIMEOUT_S)
        return torch.randn(32)


def loads(trouble):
    join()
    loader = DataLoader(
        Pictures(trouble), batch_size=8, num_workers=1, multiprocessing_context="fork"
    )
    model, optimizer = trained(Net(0.1))
    for x in loader:
        step(model, optimizer, x)


def slow_disk():
    """Now and then rank 0 writes to what takes it slowly, and the others wait at a barrier."""
    join()
    model, optimizer = trained(Net())

    def drain(end):
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            time.sleep(0.5)
            os.read(end, 20_000)
        while os.read(end, 1 << 16):
            pass

    for i in range(60):
        step(model, optimizer, torch.randn(16, 32))
        if i % 25 == 24:
            if rank == 0:
                r, w = os.pipe()
                disk = threading.Thread(target=drain, args=(r,))
                disk.start()
                os.write(w, b"x" * 400_000)
                os.close(w)
                disk.join()
            dist.barrier()


def server():
    """Rank 0 serves the others and takes no steps; in the end all sleep."""
    join()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    flat = torch.zeros(sum(p.numel() for p in net.parameters()))
    for _ in range(80):
        dist.broadcast(flat, src=0)
        if rank:
            step(net, optimizer, torch.randn(16, 32))
        dist.reduce(flat, dst=0)
    dist.barrier()
    time.sleep(6)


def joins():
    """Uneven inputs, the way DDP offers for them."""
    join()
    model, optimizer = trained(Net())
    with model.join():
        for _ in range(40 + 20 * rank):
            step(model, optimizer, torch.randn(16, 32))
    dist.barrier()


def pauses():
    """The garbage collector stops each rank in steps of its own."""
    gc.disable()
    join()
    model, optimizer = trained(Net())
    gc.callbacks.append(lambda when, _: time.sleep(0.3) if when == "start" else None)
    for i in range(100):
        step(model, optimizer, torch.randn(16, 32))
        if i % 12 == 4 * rank:
            gc.collect(0)


def lengths():
    """Batches are of very different lengths, each step other ones."""
    join()
    model, optimizer = trained(Net())
    chance = random.Random(1000 + rank)
    for _ in range(80):
        length = min(300, int(chance.lognormvariate(4.3, 0.7)))
        step(model, optimizer, torch.randn(1, length, 32))


def call_each():
    """Gradients are exchanged one by one."""
    join()
    net = nn.Sequential(*[nn.Linear(16, 16) for _ in range(60)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        net(torch.randn(64, 16)).square().mean().backward()
        for p in net.parameters():
            dist.all_reduce(p.grad)
        optimizer.step()


def without_no_sync():
    """Gradients are accumulated over eight batches, and exchanged for each of them."""
    join()
    model, optimizer = trained(nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024)))
    for _ in range(40):
        optimizer.zero_grad()
        for _ in range(8):
            (model(torch.randn(4, 1024)).square().mean() / 8).backward()
        optimizer.step()


def keeps():
    """Rank 0 gathers what all ranks put out in each step, and keeps it."""
    join()
    model, optimizer = trained(Net(0.02, outputs=2048))
    kept = []
    for _ in range(150):
        out = step(model, optimizer, torch.randn(64, 32)).detach()
        parts = [torch.empty_like(out) for _ in range(world)] if rank == 0 else None
        dist.gather(out, parts, dst=0)
        if parts:
            kept.append(torch.cat(parts))


KINDS = {
    each.__name__: each
    for each in (
        stops_early, fewer_batches, skips_batch, validates_alone, wrong_world, members_only,
        slow_disk, server, joins, pauses, lengths, call_each, without_no_sync, keeps,
    )
} | {
    "loader_stuck": lambda: loads("stuck"),
    "loader_killed": lambda: loads("killed"),
}  # fmt: skip

KINDS[sys.argv[1]]()
if sys.argv[1] not in ("stops_early", "skips_batch"):  # these just end
    dist.destroy_process_group()
