"""Uncaught exceptions within forward, backward, optimizer, loader: tracebacks on stderr.

exit: 1
also: watch
"""

import os
import sys

import torch
from torch.utils.data import DataLoader
from training import batches, show, small_model, train_step


class Failing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small_model()

    def forward(self, inputs):
        if where == "forward":
            fail()
        return self.inner(inputs)


def fail(*_):
    if number == last:
        raise ValueError(f"in {where}")


def train():
    global number
    model = Failing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if where == "backward":
        model.inner[0].weight.register_hook(fail)
    if where == "optimizer":
        optimizer.register_step_pre_hook(fail)
    for number, batch in enumerate(
        DataLoader(list(batches()), batch_size=None, collate_fn=collate)
    ):
        show("loss", train_step(model, optimizer, batch))


def collate(batch):
    if where == "loader":
        fail()
    return batch


number = 0
for where in ("backward", "optimizer", "loader", "forward"):
    for last in (2, 16):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            train()
        show(where, last, "left with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
train()
