"""The environment and command line that a script and its children see."""

import os
import subprocess
import sys

import torch
from training import show, small_model, train

model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
added = ("DPWATCH", "PYTHONPATH", "MASTER_PORT")
show({k: v for k, v in sorted(os.environ.items()) if not k.startswith(added)})
show(sys.argv[1:], sys.orig_argv[2:], sys.path, sys.flags)
done = subprocess.run(["env"], capture_output=True, text=True)
show(sorted(line for line in done.stdout.splitlines() if not line.startswith(added)))
show(os.getpriority(os.PRIO_PROCESS, 0))
