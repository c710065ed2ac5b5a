"""torch.compile with modes and dynamic shapes, in inductor.

variants: default | reduce-overhead | dynamic
needs: program g++
"""

import sys

import torch
from torch._dynamo.utils import counters
from training import batches, show, small_model, train_step

how = sys.argv[1]
model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
options = {"dynamic": True} if how == "dynamic" else {"mode": how}
compiled = torch.compile(model, **options)
for number, (inputs, targets) in enumerate(batches(16)):
    rows = 32 - 2 * number if how == "dynamic" else 32
    show("loss", train_step(compiled, optimizer, (inputs[:rows], targets[:rows])))
show("frames", dict(counters["frames"]), "graphs", counters["stats"]["unique_graphs"])
