"""FakeTensorMode around a model, before and while a real one trains."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from training import batches, show, small_model, train_step

with FakeTensorMode() as mode:
    fake = small_model()
    planned = torch.optim.Adam(fake.parameters())
    fake(torch.randn(4, 8)).sum().backward()
    planned.step()
    show([str(p.shape) for p in fake.parameters()], type(fake[0].weight.grad).__name__)
model = small_model()
optimizer = torch.optim.Adam(model.parameters())
for batch in batches():
    show("loss", train_step(model, optimizer, batch))
    with mode:
        show("fake", tuple(fake(torch.empty(5, 8)).shape))
