"""Accumulated gradients, clipping, frozen layers, parameters added in mid-training, several losses.

also: watch
"""

import torch
from training import batches, fingerprint, loss_of, show, small_model

model = small_model()
model[0].weight.requires_grad_(False)
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for number, batch in enumerate(batches(48)):
    loss = loss_of(model, batch) / 2
    (loss + 0.01 * model[2].weight.abs().sum()).backward(retain_graph=True)
    loss.backward()
    if number % 2:
        show("norm", torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
        optimizer.zero_grad()
    if number == 20:
        model[0].weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model[0].weight], "lr": 1e-3})
    show("loss", loss)
show("parameters", fingerprint(model.parameters()))
