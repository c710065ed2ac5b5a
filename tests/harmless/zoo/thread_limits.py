"""Threads that torch uses: set_num_threads, in a script that changes it in mid-training."""

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches()):
    torch.set_num_threads(1 + number % 2)
    show("loss", train_step(model, optimizer, batch), torch.get_num_threads())
