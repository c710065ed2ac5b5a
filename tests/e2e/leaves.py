"""A script that trains and then leaves in one of many ways: python leaves.py WAY."""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

STEPS, LAST = 12, 8
way = sys.argv[1]


class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")


def main():
    model = nn.Linear(16, 16)
    if rank is not None:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).pow(2).mean().backward()
        optimizer.step()
        if step == LAST and rank in (None, 1):
            leave()
        if way == "ctrl-c":
            print("step", step, flush=True)
            time.sleep(60 if step == LAST else 0)


def leave():
    if way in ("exit", "raise", "hook"):
        raise RuntimeError("a bad sample")
    if way == "mute":
        raise Mute
    if way == "_exit":
        time.sleep(0.5)  # what it recorded last would be lost with it
        os._exit(3)
    if way == "_exit 0":
        time.sleep(0.5)
        os._exit(0)


torch.set_num_threads(1)
torch.manual_seed(0)
rank = int(os.environ["RANK"]) if "RANK" in os.environ else None
if way == "hook":  # as rich.traceback.install() does
    sys.excepthook = lambda kind, error, trace: print("MINE", error, file=sys.stderr)
if rank is not None:
    dist.init_process_group("gloo")
if way == "killed":
    import dpwatch

    with dpwatch.watch():
        main()
    os.kill(os.getpid(), signal.SIGKILL)
try:
    main()
except RuntimeError as error:
    if way != "exit":
        raise
    print("error:", error, file=sys.stderr)
    sys.exit(1)  # as Hydra does
