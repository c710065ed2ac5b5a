"""Two ranks that communicate in one way or another: torchrun --nproc-per-node 2 exchanges.py WAY.

None of it knows of dpwatch. `test_exchanges` says what is to be told of each way.
"""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

WIDTH, ROWS, PARTS = 64, 8, 4
RARELY, TOGETHER = 4, 20


def train(model, steps, between=lambda step: None, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(ROWS, WIDTH)).square().mean().backward()
        optimizer.step()
        between(step)


def messages(rank):
    """Activations one way and gradients the other; the second half by one `batch_isend_irecv`."""
    model = nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    other = 1 - rank
    for _ in range(20):
        time.sleep(0.03)
        optimizer.zero_grad()
        hidden, gradient = model(torch.randn(ROWS, WIDTH)), torch.empty(ROWS, WIDTH)
        if rank == 0:
            dist.send(hidden.detach(), 1)
            dist.recv(gradient, 1)
        else:
            dist.recv(gradient, 0)
            dist.send(hidden.detach(), 0)
        hidden.backward(gradient)
        ops = [dist.P2POp(dist.isend, hidden.detach(), other),
               dist.P2POp(dist.irecv, gradient, other)]  # fmt: skip
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        optimizer.step()


def pipeline(rank):
    """torch's own pipeline schedule: each part goes on as it is, and its gradient comes back."""
    stage = PipelineStage(nn.Linear(WIDTH, WIDTH), rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=PARTS, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.SGD(stage.submod.parameters(), lr=0.01)
    for _ in range(20):
        time.sleep(0.03)
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(torch.randn(ROWS * PARTS, WIDTH))
        else:
            schedule.step(target=torch.randn(ROWS * PARTS, WIDTH))
        optimizer.step()


def mixed(rank):
    """Rare calls, calls that overlap, and calls that are waited for by their future."""
    pair = dist.new_group([0, 1])
    model = DistributedDataParallel(nn.Linear(WIDTH, WIDTH))
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    gathered = torch.empty(2 * WIDTH)

    def between(step):
        if step % RARELY == 0:
            dist.reduce(torch.ones(1000), 0)
        time.sleep(0.03 * rank)
        together = [torch.ones(100) for _ in range(TOGETHER)]
        for work in [dist.all_reduce(each, group=pair, async_op=True) for each in together]:
            work.wait()
        dist.all_gather_into_tensor(gathered, torch.ones(WIDTH), async_op=True).get_future().wait()

    train(model, 1 + 8 * RARELY, between)


def again(rank):
    """All ranks leave and come back together; and a group of some lives for a step each time."""

    def between(step):
        group = dist.new_group([0, 1])
        dist.all_reduce(torch.ones(5), group=group)
        dist.destroy_process_group(group)

    for life in range(3):
        if life:
            dist.destroy_process_group()
            store = dist.FileStore(f"{sys.argv[2]}.{life}", 2)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        model = DistributedDataParallel(nn.Linear(WIDTH, WIDTH))
        train(model, 15, lambda step: (between(step), time.sleep(0.03)))


def validation(rank):
    """Rank 0 alone validates through DDP, which broadcasts buffers; the other is at a barrier."""
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    model = DistributedDataParallel(body)
    train(model, 10, lambda step: time.sleep(0.06))
    if rank == 0:
        with torch.no_grad():
            for _ in range(5):
                model(torch.randn(ROWS, WIDTH))
    dist.barrier()


def network():
    """Of as many layers as ranks, so that they can be shared out evenly."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))


def healthy(rank):
    """A thousand steps each of three kinds."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    train(DistributedDataParallel(network()), 1000)
    train(fully_shard(network()), 1000)
    model = DistributedDataParallel(network())
    adam = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01)
    train(model, 1000, optimizer=adam)


WAYS = (messages, pipeline, mixed, again, validation, healthy)

if __name__ == "__main__":
    way = next(each for each in WAYS if each.__name__ == sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group(timeout=timedelta(seconds=12 if way is validation else 120))
    torch.manual_seed(0)
    way(dist.get_rank())
    dist.barrier()
    dist.destroy_process_group()
