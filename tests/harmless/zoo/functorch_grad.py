"""torch.func.grad and functional_call: transforms have a stack of their own, and no backward."""

import torch
from torch.func import functional_call, grad_and_value
from training import batches, fingerprint, show, small_model

model = small_model()
params = dict(model.named_parameters())
optimizer = torch.optim.SGD(params.values(), lr=0.1)


def loss_at(params, inputs, targets):
    return (functional_call(model, params, (inputs,)) - targets).pow(2).mean()


for batch in batches():
    grads, loss = grad_and_value(loss_at)({k: p.detach() for k, p in params.items()}, *batch)
    for name, param in params.items():
        param.grad = grads[name]
    optimizer.step()
    show("loss", loss)
show("parameters", fingerprint(params.values()))
