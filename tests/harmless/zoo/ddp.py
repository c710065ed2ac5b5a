"""DistributedDataParallel over gloo with two ranks: bucket views, no_sync, gradients, buffers.

command: {torchrun} {script}
order: any
also: watch
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import batches, fingerprint, loss_of, show, small_model

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(small_model(), gradient_as_bucket_view=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, (inputs, targets) in enumerate(batches()):
    batch = inputs[rank::2], targets[rank::2]
    optimizer.zero_grad()
    with model.no_sync():
        loss_of(model, batch).backward()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    show(rank, number, "loss", loss, fingerprint(p.grad for p in model.parameters()))
show(rank, "parameters", fingerprint(model.parameters()), sorted(model._get_ddp_logging_data())[:5])
dist.destroy_process_group()
