"""sys.modules of torch, and sys.path: nothing comes in earlier, later, or renamed."""

import sys

before = set(sys.modules)
import torch
from training import show, small_model, train

model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
ours = ("dpwatch", "msgspec", "zmq", "pynvml")
found = sorted(name for name in set(sys.modules) - before if name.split(".")[0] == "torch")
show(len(found), found)
show(sys.path, [name for name in before if name.split(".")[0] in ours])
