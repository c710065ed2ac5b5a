"""Odd steps: no gradient, empty tensors, zero parameters, views as parameters."""

import torch
from training import fingerprint, seed, show

seed()
base = torch.randn(12)
params = [
    torch.nn.Parameter(base[:6].view(2, 3)),
    torch.nn.Parameter(base[6:].view(3, 2).t()),
    torch.nn.Parameter(torch.empty(0, 3)),
]
optimizer = torch.optim.Adam(params, lr=1e-2)
for number in range(24):
    optimizer.zero_grad(set_to_none=bool(number % 2))
    if number % 3:
        loss = (params[0] * params[1]).sum() + params[2].sum() + (params[0] @ params[1].t()).prod()
        loss.backward()
        show("loss", loss)
    show(optimizer.step(), fingerprint(params))
