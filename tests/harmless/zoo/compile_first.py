"""The first torch.compile at some step, with fullgraph: all graphs, and no more frames.

variants: eager 0 | eager 2 | eager 10 | aot_eager 2 | inductor 10
needs: program g++ for inductor
"""

import sys

import torch
from torch._dynamo.utils import counters
from training import batches, fingerprint, show, small_model, train_step

backend, first = sys.argv[1], int(sys.argv[2])
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
compiled = torch.compile(model, backend=backend, fullgraph=True)
for number, batch in enumerate(batches()):
    show("loss", train_step(compiled if number >= first else model, optimizer, batch))
show("parameters", fingerprint(model.parameters()))
show("frames", dict(counters["frames"]), "graphs", counters["stats"]["unique_graphs"])
show("breaks", dict(counters["graph_break"]))
