"""torch.utils._debug_mode.DebugMode prints each call it sees, with functions if asked for.

needs: module torch.utils._debug_mode
"""

import torch
from torch.utils._debug_mode import DebugMode
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches(16):
    with DebugMode(record_torchfunction=True) as mode:
        loss = train_step(model, optimizer, batch)
    show("loss", loss)
    show(mode.debug_string())
