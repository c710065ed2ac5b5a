"""A complex pseudo-inverse, which torch gets wrong under any dispatch mode."""

import torch
from training import fingerprint, seed, show

seed()
weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))
optimizer = torch.optim.SGD([weight], lr=1e-2)
for _ in range(24):
    inverse = torch.linalg.pinv(weight)
    loss = (weight @ inverse @ weight - weight).abs().sum() + weight.abs().pow(2).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    show("loss", loss, fingerprint([inverse]))
