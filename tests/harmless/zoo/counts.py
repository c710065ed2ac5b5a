"""sys.getrefcount of parameters, gradients, modules, optimizers and losses, each step."""

import sys
import weakref

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for batch in batches():
    loss = train_step(model, optimizer, batch)
    things = [*model.parameters(), *(p.grad for p in model.parameters()), loss, *batch]
    things += [p.untyped_storage() for p in model.parameters()]
    show([sys.getrefcount(thing) for thing in things])
    show([sys.getrefcount(thing) for thing in (model, optimizer, optimizer.state)])
    show([len(param.__dict__) for param in model.parameters()], sorted(vars(model))[-3:])
    show("weak", [weakref.getweakrefcount(thing) for thing in model.parameters()])
