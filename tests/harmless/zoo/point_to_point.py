"""Two pipeline stages that send and receive, batched and one by one, and objects.

command: {torchrun} {script}
order: any
"""

import torch
import torch.distributed as dist
from training import batches, fingerprint, show, small_model

dist.init_process_group("gloo")
rank = dist.get_rank()
model = small_model(rank)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, (inputs, targets) in enumerate(batches()):
    optimizer.zero_grad()
    if rank == 0:
        hidden = model(inputs)
        dist.send(hidden.detach(), 1)
        grad = torch.empty_like(hidden)
        dist.batch_isend_irecv([dist.P2POp(dist.irecv, grad, 1)])[0].wait()
        hidden.backward(grad)
    else:
        hidden = torch.empty(32, 4)
        dist.recv(hidden, 0)
        hidden.requires_grad_()
        loss = (model(torch.cat([hidden, hidden], 1)) - targets).pow(2).mean()
        loss.backward()
        dist.batch_isend_irecv([dist.P2POp(dist.isend, hidden.grad, 0)])[0].wait()
        show(rank, number, "loss", loss)
    optimizer.step()
objects = [None, None]
dist.all_gather_object(objects, fingerprint(model.parameters()))
show(rank, objects)
dist.destroy_process_group()
