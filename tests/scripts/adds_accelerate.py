"""What accelerate adds: torchrun --nproc-per-node 2 adds_accelerate.py.

With `dispatch_batches`, where rank 0 reads for all, and without. What a batch is made of is
pickled here once more, and its length printed.
"""

import json
import pickle

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import get_data_structure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCH, ROWS = 2, 4, 32

accelerator = Accelerator(
    cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = TensorDataset(torch.randn(ROWS, 8), torch.randint(0, 4, (ROWS,)))
model, optimizer = accelerator.prepare(model, optimizer)


def train(loader):
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()


train(accelerator.prepare(DataLoader(data, batch_size=BATCH, shuffle=True)))
accelerator.dataloader_config.dispatch_batches = None
train(accelerator.prepare(DataLoader(data, batch_size=BATCH, shuffle=True)))
accelerator.gather(torch.zeros(3))
if accelerator.is_main_process:
    batch = [torch.zeros(2 * BATCH, 8), torch.zeros(2 * BATCH, dtype=torch.int64)]
    told = {
        "batch": len(pickle.dumps(get_data_structure(batch))),
        "more": len(pickle.dumps(False)),
        "none": len(pickle.dumps(None)),
        "over": len(pickle.dumps(True)),
        "random_state": torch.get_rng_state().nbytes,
    }
    print(json.dumps(told))
accelerator.end_training()
