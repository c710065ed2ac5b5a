"""A compiled optimizer step, as PyTorch's tutorial has it: its graphs, breaks and warnings.

variants: eager 0 | eager 2 | inductor 10
needs: program g++ for inductor
"""

import sys

import torch
from torch._dynamo.utils import counters
from training import batches, loss_of, show, small_model

backend, first = sys.argv[1], int(sys.argv[2])
model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)


@torch.compile(fullgraph=False, backend=backend)
def update():
    optimizer.step()


for number, batch in enumerate(batches()):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    update() if number >= first else optimizer.step()
    show("loss", loss)
# Ten are attempted without the probe, or one fewer with it: a frame that has no operations is
# compiled, where it would be skipped and what it calls attempted too.
frames = counters["frames"]
show("frames", frames["total"] in (9, 10), frames["total"] - frames["ok"])
show("graphs", counters["stats"]["unique_graphs"])
show("breaks", sum(counters["graph_break"].values()))
