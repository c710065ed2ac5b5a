"""Every collective, sync and async, on sub-groups, functional; works and their errors.

command: {torchrun} {script}
order: any
"""

import warnings

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from training import fingerprint, seed, show

warnings.simplefilter("ignore")
dist.init_process_group("gloo")
rank = dist.get_rank()
seed(rank)
alone = [dist.new_group([r]) for r in range(2)][rank]
weight = torch.nn.Parameter(torch.zeros(4))
optimizer = torch.optim.SGD([weight], lr=0.1)
for number in range(14):
    one, two = torch.randn(4), [torch.empty(4), torch.empty(4)]
    work = dist.all_reduce(one, async_op=True)
    show(rank, number, type(work).__name__, work.wait(), work.is_completed())
    dist.broadcast(one, 1)
    dist.all_gather(two, one)
    both = torch.empty(8)
    dist.all_gather_into_tensor(both, one)
    dist.reduce_scatter_tensor(one, both, op=dist.ReduceOp.MAX)
    dist.all_to_all_single(both, both.clone())
    dist.all_reduce(one, group=alone)
    dist.gather(one, two if rank == 0 else None)
    dist.scatter(one, two if rank == 0 else None)
    dist.barrier()
    dist.monitored_barrier()
    later = functional.all_reduce(one, "sum", dist.group.WORLD)
    show(rank, number, fingerprint([one, both, *two]), type(later).__name__, later.sum())
    try:
        dist.all_reduce([one])
    except Exception as error:
        show(rank, type(error).__name__, error)
    try:
        dist.all_reduce(torch.ones(2, dtype=torch.complex64).to_sparse())
    except Exception as error:
        show(rank, type(error).__name__, str(error).splitlines()[0])
    weight.square().sum().backward()
    optimizer.step()
dist.destroy_process_group()
