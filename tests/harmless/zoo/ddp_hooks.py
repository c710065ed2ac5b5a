"""DDP with a communication hook of the user's, and join() with uneven batches.

command: {torchrun} {script}
order: any
"""

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from training import batches, fingerprint, show, small_model, train_step

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(small_model())
model.register_comm_hook(None, default_hooks.fp16_compress_hook)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with model.join():
    for number, batch in enumerate(batches(16 + rank * 2)):
        show(rank, number, "loss", train_step(model, optimizer, batch))
show(rank, fingerprint(model.parameters()))
dist.destroy_process_group()
