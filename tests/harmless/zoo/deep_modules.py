"""Modules nested to near Python's recursion limit: one more frame a call is too many."""

import torch
from torch import nn
from training import seed, show


class Nested(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layer = nn.Identity()
        self.inner = Nested(depth - 1) if depth else nn.Linear(4, 4)

    def forward(self, inputs):
        return self.inner(self.layer(inputs))


seed()
model = Nested(225)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(14):
    optimizer.zero_grad()
    loss = model(torch.ones(2, 4)).pow(2).mean()
    loss.backward()
    optimizer.step()
    show("loss", loss)
