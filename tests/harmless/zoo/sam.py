"""Sharpness-aware minimisation: two backwards a step, and parameters moved in between."""

import torch
from training import batches, fingerprint, loss_of, show, small_model

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches():
    optimizer.zero_grad()
    first = loss_of(model, batch)
    first.backward()
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        moves = [p.grad * 0.05 / norm for p in model.parameters()]
        for p, move in zip(model.parameters(), moves, strict=True):
            p.add_(move)
    optimizer.zero_grad()
    second = loss_of(model, batch)
    second.backward()
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.sub_(move)
    optimizer.step()
    show("loss", first, second)
show("parameters", fingerprint(model.parameters()))
