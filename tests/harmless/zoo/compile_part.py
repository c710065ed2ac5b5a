"""A function compiled without fullgraph and first called late: silently staying eager shows here.

variants: 1 | 2 | 10
"""

import sys

import torch
from torch._dynamo.utils import counters
from training import batches, loss_of, show, small_model, train_step

first = int(sys.argv[1])
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


@torch.compile(backend="eager")
def evaluate(batch):
    with torch.no_grad():
        return loss_of(model, batch)


for number, batch in enumerate(batches()):
    if number >= first:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        show("evaluated", evaluate(batch), "graphs", counters["stats"]["unique_graphs"])
        optimizer.step()
    else:
        loss = train_step(model, optimizer, batch)
    show("loss", loss)
show("frames", dict(counters["frames"]), "breaks", dict(counters["graph_break"]))
