"""Steps handed to a pool of threads, so that each may run on another one; main only waits."""

from concurrent.futures import ThreadPoolExecutor

import torch
from training import batches, fingerprint, show, small_model, train_step

model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
with ThreadPoolExecutor(3) as pool:
    for batch in batches():
        show("loss", pool.submit(train_step, model, optimizer, batch).result())
show("parameters", fingerprint(model.parameters()))
