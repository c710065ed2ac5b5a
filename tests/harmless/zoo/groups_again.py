"""Process groups that are destroyed and recreated, with training before, between and after.

command: {torchrun} {script}
order: any
"""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import batches, fingerprint, show, small_model, train_step

rank = int(os.environ["RANK"])
for round in range(3):
    dist.init_process_group(
        "gloo", init_method=f"file://{os.path.abspath(f'meet{round}')}", rank=rank, world_size=2
    )
    model = DistributedDataParallel(small_model(round))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, batch in enumerate(batches(14)):
        show(rank, round, number, "loss", train_step(model, optimizer, batch))
    group = dist.new_group([0, 1])
    dist.barrier(group)
    show(rank, round, dist.get_world_size(), group.group_name, fingerprint(model.parameters()))
    del model
    dist.destroy_process_group()
    show(rank, dist.is_initialized(), len(dist.distributed_c10d._world.pg_map))
