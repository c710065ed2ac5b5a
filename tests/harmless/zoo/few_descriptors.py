"""A limit of open files that the script uses up itself, down to the last one."""

import resource

import torch
from training import show, small_model, train

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
train(model, optimizer, 14)
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError as error:
    show(error.errno, error.strerror, len(held) > 12)
train(model, optimizer, 14)
for file in held:
    file.close()
show("loaded", __import__("colorsys").__name__)
