"""faulthandler dumps the training thread's stack from a hook: whose frames are on it."""

import faulthandler
import re
import tempfile

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.register_step_pre_hook(lambda *_: dump())


def dump():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(0)
        show([re.sub(r'.*/|"', "", line) for line in file.read().splitlines()])


faulthandler.enable()
for batch in batches(14):
    show("loss", train_step(model, optimizer, batch))
show(faulthandler.is_enabled())
