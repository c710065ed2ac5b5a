"""Gradients of each sample by vmap over grad, as for differential privacy."""

import torch
from torch.func import functional_call, grad, vmap
from training import batches, fingerprint, loss_of, show, small_model

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def sample_loss(params, inputs, targets):
    return (functional_call(model, params, (inputs,)) - targets).pow(2).mean()


for batch in batches():
    loss = loss_of(model, batch)
    optimizer.zero_grad()
    loss.backward()
    params = {k: p.detach() for k, p in model.named_parameters()}
    each = vmap(grad(sample_loss), in_dims=(None, 0, 0), randomness="error")(params, *batch)
    show("norms", torch.stack([g.flatten(1).norm(dim=1) for g in each.values()]).sum())
    optimizer.step()
    show("loss", loss, fingerprint(each.values()))
