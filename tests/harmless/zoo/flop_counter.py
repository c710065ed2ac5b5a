"""FlopCounterMode around each step: counted by module and operator."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches():
    with FlopCounterMode(model, display=False) as counter:
        loss = train_step(model, optimizer, batch)
    counts = counter.get_flop_counts()
    told = sorted((where, str(op), n) for where, ops in counts.items() for op, n in ops.items())
    show("loss", loss, counter.get_total_flops(), told)
