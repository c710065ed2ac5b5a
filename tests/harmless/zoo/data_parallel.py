"""nn.DataParallel, DataParallel-like replication and gather on the CPU, in threads of its own."""

import torch
from torch import nn
from training import batches, show, small_model, train_step

inner = small_model()
model = nn.DataParallel(inner)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches():
    show("loss", train_step(model, optimizer, batch), model.device_ids, type(model.module).__name__)
