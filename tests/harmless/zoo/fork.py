"""os.fork in mid-training: the child goes on by itself, prints, and leaves by os._exit."""

import os
import sys

import torch
from training import batches, fingerprint, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
    if number in (0, 1, 2, 5, 10, 18):
        child = os.fork()
        if not child:
            for each in batches(14):
                train_step(model, optimizer, each)
            show("child", fingerprint(model.parameters()))
            sys.stdout.flush()
            os._exit(number)
        show("left with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
show("parameters", fingerprint(model.parameters()))
