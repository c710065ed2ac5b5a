"""A fork within forward, backward, an optimizer's step, whose child leaves by sys.exit.

variants: forward | backward | optimizer
"""

import os
import sys

import torch
from training import batches, fingerprint, show, small_model, train_step

where = sys.argv[1]
number = 0


def fork(*_):
    if number in (1, 2, 12):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            show("child", torch.is_grad_enabled())
            sys.exit(7) if where != "backward" else os._exit(7)
        show("left with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if where == "forward":
    model[1].register_forward_hook(fork)
elif where == "backward":
    model[0].weight.register_hook(fork)
else:
    optimizer.register_step_pre_hook(fork)
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
show("parameters", fingerprint(model.parameters()))
