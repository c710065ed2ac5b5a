"""A model on the meta device trains shapes only, then is materialised and trains for real."""

import torch
from training import show, small_model, train

with torch.device("meta"):
    model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(14):
    optimizer.zero_grad()
    model(torch.empty(32, 8, device="meta")).sum().backward()
    optimizer.step()
show([(str(p.device), tuple(p.grad.shape)) for p in model.parameters()])
real = small_model().to_empty(device="cpu")
real.load_state_dict(small_model().state_dict())
train(real, torch.optim.SGD(real.parameters(), lr=0.1))
