"""TorchScript: script, trace, save, whose code and files tell of functions that were replaced."""

import warnings

import torch
from training import batches, show, small_model, train_step

warnings.simplefilter("ignore", DeprecationWarning)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
    if number in (0, 1, 2, 10):
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, batch[0])
        show(scripted.code, traced.code, scripted(batch[0]).sum(), traced(batch[0]).sum())
        torch.jit.save(scripted, f"scripted{number}.pt")
optimizer = torch.optim.SGD(scripted.parameters(), lr=0.1)
for batch in batches(4):
    show("loss", train_step(scripted, optimizer, batch))
