"""weakref.getweakrefcount of models, optimizers and losses.

noticed: the probe keeps weak references to models and optimizers
"""

import weakref

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for batch in batches():
    loss = train_step(model, optimizer, batch)
    show([weakref.getweakrefcount(thing) for thing in (model, optimizer, loss)])
