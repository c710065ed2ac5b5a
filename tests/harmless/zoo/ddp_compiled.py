"""A compiled model in DDP: the DDP optimizer splits graphs at buckets, in every rank alike.

command: {torchrun} {script} {arguments}
variants: eager | inductor
needs: program g++ for inductor
order: any
"""

import sys

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from training import batches, fingerprint, show, small_model, train_step

dist.init_process_group("gloo")
rank = dist.get_rank()
model = torch.compile(DistributedDataParallel(small_model()), backend=sys.argv[1])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches(16)):
    show(rank, number, "loss", train_step(model, optimizer, batch))
show(
    rank,
    fingerprint(model.parameters()),
    dict(counters["frames"]),
    counters["stats"]["unique_graphs"],
)
dist.destroy_process_group()
