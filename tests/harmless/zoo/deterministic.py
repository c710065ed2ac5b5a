"""Deterministic algorithms, uninitialised memory filled, and an operator that refuses."""

import torch
from torch import nn
from training import batches, fingerprint, random_states, seed, show, train_step

torch.use_deterministic_algorithms(True)
seed()
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for batch in batches():
    show("loss", train_step(model, optimizer, batch), fingerprint([torch.empty(64)]))
    table = torch.zeros(10).index_put_((torch.randint(10, (50,)),), torch.rand(50), accumulate=True)
    show(
        table.sum(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
try:
    torch.ones(8, requires_grad=True).put(torch.tensor([0]), torch.ones(1)).sum().backward()
    torch.histc(torch.rand(9))
    show("no error")
except RuntimeError as error:
    show(error)
show(*random_states())
