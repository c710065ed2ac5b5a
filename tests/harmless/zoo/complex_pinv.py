"""A complex pseudo-inverse, which torch gets wrong under any dispatch mode."""

import torch
from training import fingerprint, seed, show

seed()


class Inverse(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))

    def forward(self):
        return torch.linalg.pinv(self.weight)


model = Inverse()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
for _ in range(24):
    inverse, weight = model(), model.weight
    loss = (weight @ inverse @ weight - weight).abs().sum() + weight.abs().pow(2).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    show("loss", loss, fingerprint([inverse]))
