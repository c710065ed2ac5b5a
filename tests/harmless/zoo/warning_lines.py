"""Warnings and log records name the line that caused them, which is found by counting frames.

noticed: where a module's own call is named, its file is the probe's
"""

import logging
import sys
import warnings

import torch
from training import batches, loss_of, show, small_model

logging.basicConfig(stream=sys.stdout, format="%(filename)s %(funcName)s %(message)s")
warnings.simplefilter("always")


class Chatty(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small_model()

    def forward(self, inputs):
        for level in range(1, 6):
            warnings.warn(f"level {level}", stacklevel=level)
        logging.warning("who called?", stacklevel=4)
        return self.inner(inputs)


def told(message, category, filename, lineno, *_):
    show(message, filename.rpartition("/")[2])


warnings.showwarning = told
model = Chatty()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches(14):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
