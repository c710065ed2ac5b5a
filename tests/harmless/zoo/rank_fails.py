"""A rank that fails under torchrun: its traceback, the launcher's report, the exit code.

exit: 1
command: {torchrun} {script}
order: any
stderr: not compared line by line, since it has times and process ids
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import batches, show, small_model, train_step

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(small_model())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches(14)):
    show(rank, number, "loss", train_step(model, optimizer, batch))
if rank == 1:
    print("rank 1: bad sample", file=sys.stderr, flush=True)
    sys.exit(6)
dist.barrier()
