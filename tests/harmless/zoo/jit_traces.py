"""Files of traced models: torch writes into them where each operator was called from.

noticed: the probe's functions are among the calls that torch.jit.trace writes down
"""

import warnings

import torch
from training import batches, show, small_model, train_step

warnings.simplefilter("ignore", DeprecationWarning)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches(14)):
    show("loss", train_step(model, optimizer, batch))
    if number in (2, 13):
        torch.jit.save(torch.jit.trace(model, batch[0]), f"traced{number}.pt")
