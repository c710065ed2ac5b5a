"""fully_shard on two ranks: sharded parameters, resharding, a checkpoint that is written whole.

command: {torchrun} {script}
order: any
"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from training import batches, fingerprint, show, small_model, train_step

dist.init_process_group("gloo")
rank = dist.get_rank()
model = small_model()
for layer in model:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for number, batch in enumerate(batches()):
    show(rank, number, "loss", train_step(model, optimizer, batch))
whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
show(rank, fingerprint(whole.values()))
if rank == 0:
    torch.save(whole, "model.pt")
dist.destroy_process_group()
