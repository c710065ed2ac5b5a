"""ZeroRedundancyOptimizer in DDP, whose step wraps another optimizer's and broadcasts.

command: {torchrun} {script}
order: any
"""

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from training import batches, fingerprint, show, small_model, train_step

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(small_model())
optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-2)
for number, batch in enumerate(batches()):
    show(rank, number, "loss", train_step(model, optimizer, batch))
show(rank, fingerprint(model.parameters()), len(optimizer.optim.state))
dist.destroy_process_group()
