"""Compiled autograd: backward itself is traced, with whatever hooks it finds."""

import torch
from torch._dynamo.utils import counters
from training import batches, loss_of, show, small_model

torch._dynamo.config.compiled_autograd = True
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


@torch.compile(backend="eager")
def forward_backward(batch):
    loss = loss_of(model, batch)
    loss.backward()
    return loss


for batch in batches():
    optimizer.zero_grad()
    loss = forward_backward(batch)
    optimizer.step()
    show("loss", loss)
show("captures", counters["compiled_autograd"]["captures"])
show("graphs", counters["stats"]["unique_graphs"])
