"""A script that reads its standard input in mid-training, to the end.

stdin: three
  lines of
  text
"""

import sys

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches(14)):
    show("loss", train_step(model, optimizer, batch))
    if number in (3, 11):
        show(repr(sys.stdin.readline()))
show(repr(sys.stdin.read()), sys.stdin.isatty())
