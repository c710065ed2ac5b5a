"""One optimizer a parameter, which steps and drops the gradient inside backward."""

import torch
from training import batches, fingerprint, loss_of, show, small_model

model = small_model()
optimizers = {p: torch.optim.SGD([p], lr=0.1, foreach=False) for p in model.parameters()}


def update(param):
    optimizers[param].step()
    optimizers[param].zero_grad()


for param in model.parameters():
    param.register_post_accumulate_grad_hook(update)
for batch in batches():
    loss = loss_of(model, batch)
    loss.backward()
    show("loss", loss, [p.grad for p in model.parameters()])
show("parameters", fingerprint(model.parameters()))
