"""A gradient penalty: backward through a graph that backward itself has made.

also: watch
"""

import torch
from training import batches, fingerprint, show, small_model

model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for inputs, targets in batches():
    inputs.requires_grad_()
    loss = (model(inputs) - targets).pow(2).mean()
    (grad,) = torch.autograd.grad(loss, inputs, create_graph=True)
    whole = loss + grad.norm(dim=1).sub(1).pow(2).mean()
    optimizer.zero_grad()
    whole.backward()
    optimizer.step()
    show("loss", loss, whole, whole.grad_fn.name())
show("parameters", fingerprint(model.parameters()))
