"""tqdm's bars and its own write, whose lines replace themselves on stderr.

needs: module tqdm
"""

import sys

import torch
from tqdm import tqdm
from training import batches, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
bar = tqdm(
    list(batches()),
    bar_format="{desc}{n_fmt}/{total_fmt} |{bar}|",
    mininterval=0,
    file=sys.stderr,
    ncols=60,
)
for batch in bar:
    loss = train_step(model, optimizer, batch)
    bar.set_description(float(loss.detach()).hex(), refresh=False)
    if bar.n % 8 == 0:
        tqdm.write(f"step {bar.n}")
