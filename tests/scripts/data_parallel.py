"""nn.DataParallel as old scripts have it, with what they do besides: python data_parallel.py.

Gradient scaling, a skipped step, an exception in a step, evaluation, two optimizers, a fork.
"""

import os
import sys

import torch
from torch import nn

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
torch.manual_seed(0)
model = nn.DataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)))
halves = list(model.parameters())
first = torch.optim.SGD(halves[:2], lr=0.01, momentum=0.9)
second = torch.optim.Adam(halves[2:])
scaler = torch.amp.GradScaler("cpu", init_scale=4.0)


def fails():
    raise ValueError("a batch that can't be used")


for step in range(steps):
    x = torch.randn(16, 64)
    first.zero_grad()
    second.zero_grad()
    try:
        loss = (model(x) - x).square().mean()
        if step == 5:
            fails()
        scaler.scale(loss * (float("inf") if step == 7 else 1.0)).backward()
        scaler.step(first)
        scaler.step(second)
        scaler.update()
    except ValueError as error:
        print(f"skipped {step} {error}\n", end="", flush=True)
        continue
    print(f"loss {step} {loss.item().hex()}\n", end="", flush=True)
    if step % 10 == 9:
        model.eval()
        with torch.no_grad():
            print(f"check {step} {model(x).sum().item().hex()}\n", end="", flush=True)
        model.train()
if os.fork() == 0:
    print("child\n", end="", flush=True)
    os._exit(0)
os.wait()
sys.exit(7)
