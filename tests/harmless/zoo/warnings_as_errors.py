"""Python's -W error: any warning that a probe causes ends the script.

command: {python} -W error {script}
also: watch
"""

import os

import torch
from training import show, small_model, train

model = small_model()
train(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
if child := os.fork():
    show("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    os._exit(5)
