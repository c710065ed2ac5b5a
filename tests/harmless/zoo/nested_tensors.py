"""Nested tensors, jagged and strided, in a model's forward and backward."""

import warnings

import torch
from training import seed, show

warnings.simplefilter("ignore")
seed()
layer = torch.nn.Linear(6, 3)
optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
for _ in range(24):
    parts = [torch.randn(n, 6) for n in (2, 5, 3)]
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    strided = torch.nested.nested_tensor(parts)
    loss = layer(jagged).values().pow(2).mean()
    loss = loss + torch.nested.to_padded_tensor(layer(strided), 0.0).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    show("loss", loss)
